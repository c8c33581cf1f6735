//go:build race

package integration

// raceEnabled says whether these tests run with the race detector; the workers then do, too.
const raceEnabled = true
