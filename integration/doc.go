// Package integration holds the tests of Berth as a whole, and nothing else: the production worker and the production
// command line as processes of their own, against a real Temporal server and a simulated site that serves the real vSphere
// API and real SSH. Nothing of ours is replaced by anything in them.
//
// What happens between these parts is made to happen by proxies that stand where a network stands: before a vCenter
// (vcenterProxy), before a guest (door) and before Temporal (temporalProxy). They hold a request or its answer back until
// a test lets it go, so that a worker can be killed at that very point, and cut connections. No test waits for a time to
// pass; each waits for what it is about.
package integration
