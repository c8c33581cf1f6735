// Package windows is the OS module of Windows guests: XP and 2003 to 11 and 2025, Sysprepped or not, over SSH or WinRM.
//
// # Waiting
//
// WaitForResponse climbs a ladder. Each rung is a stage of the load log:
//
//	tcp             the control port takes a connection
//	ssh banner      (ssh) the server's version line came
//	handshake       the guest has proved its key or certificate, which is pinned
//	authentication  it has let us in
//	winrm shell     (winrm) it has opened a shell
//	nonce           a script gives a random nonce back, and says which boot it runs in and that we are an administrator
//	set-up          the system's own set-up is over: SystemSetupInProgress and OOBEInProgress are 0, ImageState is COMPLETE
//	                (Vista and later), GeneralizationState is 7 where it is there, no set-up process runs
//	settle          the boot and all of this are still so after the settle time: Sysprep reboots, and answers in between
//
// An answer before the last rung is progress and not readiness. Two limits hold, both from osmodules.Table, both
// stretched by the attempt. Limits.NoProgress is how long nothing may change; each change moves it. Limits.Response is how
// long the whole may take; nothing moves it. Changes are: a rung that was not reached before, another state of the
// set-up, another boot, a new key or certificate, a setupact.log that has grown.
//
// Verdicts:
//
//	reload at once    set-up says in its logs that it gives up; or ImageState is UNDEPLOYABLE, set-up says that it is not in
//	                  progress, and none of its processes runs, in two looks
//	reload soon       it stands at UNDEPLOYABLE or SPECIALIZE..., nothing changes for 3 min, and either none of its processes
//	                  runs, or there is an error in setuperr.log and it waits for no command that it has started
//	reload            nothing has changed for NoProgress while the guest talks to us (a set-up that is stuck), or the whole
//	                  limit has passed
//	power reset       the guest is silent for NoProgress: one reset, a second wait (ResponseAgain), then reload
//	fail              the key or certificate changed, other than once after Sysprep; our account is no administrator; the
//	                  channel's service is a 32-bit one on a 64-bit Windows
//
// A guest that talks while its set-up stands still gets no power reset: a set-up that is interrupted does not go on.
// UNDEPLOYABLE is what a pass is while it runs, and lines in setuperr.log are usual in set-ups that go well, so neither
// alone is a failure. docs/windows.md has the rule and where it comes from.
//
// A boot is known by when its first process was created, which does not change when the clock is set.
//
// What was pinned, whether the key had changed, whether the reset was given, what changed last and when, go through the
// reporter to a worker that takes over.
//
// # Configuring
//
// PostLoad runs these steps. Each is a script under scripts/ (README.md there says what each takes and answers), run by
// PowerShell 2.0 or later; values reach it through standard input. Each is idempotent.
//
//	step                      script     if it goes wrong
//	control service           service    reload
//	control firewall          firewall   reload
//	remote desktop            rdp        reload; the image says nothing: skipped, and left as the image has it
//	fixed address             static     reload; no such interface, or it is the control channel's: fail
//	public address            address    reload
//	time                      time       warned
//	sleep                     sleep      warned
//	network prompt            prompt     warned
//	image's secrets           secrets    reload
//	Administrator's password  password   reload; the control channel logs in with it: warned
//	root's password           password   reload; no such account: skipped
//	updates                   updates    warned
//	hostname                  hostname   reload
//	pending reboot            pending    reload
//	reboot                    reboot     reload; none is due: skipped
//	domain                    join       reload, after 5 tries on faults that pass; our account is refused: fail
//	reboot after domain       reboot     reload
//	activation                activate   warned: KMS servers in order, then the MAK, 240 s each
//	script SET/NAME           site       as the script's header says; warned without one
//	tag                       tag        reload
//
// A reboot is waited for by its boot, through the whole ladder, for at most 10 minutes. There are at most 4 in a load. One
// whose request may have been lost with its connection is asked for again.
// A step that is done is not repeated by a worker that takes over, nor is a reboot that has taken place. A guest that
// reboots by itself while it is configured is reload.
//
// Site scripts stand as for Linux (package sitescripts); those that end with .ps1 are Windows'. They find what they are
// about in BERTH_ variables of their environment.
package windows
