package reservation

import (
	"fmt"
	"time"
)

// Duration is a time.Duration that reads and writes itself as text ("30m0s"), so that catalogs, workflow inputs and
// the Web UI show limits as a person writes them.
type Duration time.Duration

// Std returns d as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText writes d as time.Duration.String does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what time.ParseDuration reads, such as "90s" or "1h30m".
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration: write a number with its unit, such as 90s, 30m or 1h30m", text)
	}
	*d = Duration(parsed)
	return nil
}
