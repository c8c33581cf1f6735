// Package linux is the OS module of Linux guests. It waits until a guest answers by SSH and says that its own set-up is
// finished, and then configures it for the reservation.
//
// # Waiting
//
// WaitForResponse climbs a ladder; each rung is a stage of the report, so that a guest that does not come up is named
// by the rung where it hangs:
//
//	tcp             the control port takes a connection
//	ssh banner      sshd sends its version line
//	handshake       the key exchange, and the host key
//	authentication  our credential is accepted; a refusal is taken for "not yet" until the limit
//	nonce           a random text comes back from a command
//	boot id         /proc/sys/kernel/random/boot_id is read
//	set-up          cloud-init is done (or disabled, or not there), and systemd (where it runs) is not starting
//	settle          the boot id is still the same after Limits.Settle
//
// A connection that is lost on the way, or a boot id that changes, is a guest that reboots: the ladder begins anew, and
// only the limits end it. The first limit is InitialDelay + Response, counted from the phase's first start. A guest
// that has not come up to the top by then gets one power reset, where its provisioner can give one and ResponseAgain is
// not 0, and ResponseAgain more; then it is reload, with the rung, how long it hung there, and the last error.
//
//	what                                         verdict
//	cloud-init ended with an error               reload, with cloud-init's text
//	another host key than the pinned one         fail, with both fingerprints
//	we are not root on the guest                 fail
//	the worker lacks the credential              no verdict: a fault of ours
//
// A key that was handed to the guest (Request.HostKey) is required from the first packet. The image must therefore
// install it before sshd starts (a unit with Before=ssh.service sshd.service ssh.socket); an sshd that shows another key
// for one second is fail, because nothing tells that second from somebody else's machine.
//
// Without a handed key the key of the attempt's first handshake is pinned, before we authenticate. Images whose
// cloud-init makes host keys do that before sshd starts, too.
//
// # Polling
//
// Nothing but a timer waits: no process, and no connection while the guest does not answer. A connection is tried each
// 250 to 700 ms while an answer is due, about each second before InitialDelay, and each 600 to 950 ms late, so that 95 of
// 100 answers are noticed within a second. A refused authentication is tried again after 1 s, 2 s and then each 5 s:
// sshd (9.8 and later) shuts out an address that fails more often (PerSourcePenalties authfail:5s min:15s), and so do
// others. The set-up is asked for each 1 to 3 s, because cloud-init's answer costs the guest a Python.
//
// # Configuring
//
// PostLoad runs the steps in the order of VCL's Linux.pm (post_load). Each step is a script under scripts/, plain POSIX
// sh, run by /bin/sh on the guest after prelude.sh; values reach it as lines on its standard input. Each is idempotent.
//
//	step            script       limit   if it goes wrong
//	firewall        firewall.sh   60 s   reload; no firewall tool in the image: warned
//	public address  address.sh    90 s   reload: DHCP may answer next time
//	sshd            sshd.sh       60 s   reload; cannot be told: warned
//	time            time.sh       60 s   warned
//	root password   password.sh   30 s   reload; no chpasswd in the image: fail
//	leftover keys   keys.sh       60 s   reload; our own key is not found: warned, and nothing taken out
//	hostname        hostname.sh   30 s   reload; not wished: skipped
//	script SET/NAME site.sh      300 s   as the script's header says; warned without one
//	tag             tag.sh        30 s   reload
//
// Essential are what VCL treats so: the control channel stays, nobody but management reaches it, the public address is
// known, the image's secrets are gone, the tag is written. They are reload, not fail, because most of what goes wrong
// there (a disk that went read-only, a DHCP server that was late) may go right on a fresh load; fail is kept for an
// image that lacks what the step needs.
//
// The firewall step lets image.post_load.management_sources in, and always the address that our connection comes from
// (as the guest sees it), so that it cannot cut us off. Without management_sources that address is the only one: a
// site with workers on several hosts must list them, or another worker cannot take over.
//
// The sshd step enables sshd's unit (or leaves it to its socket), and adds a ListenAddress where sshd's configuration
// on disk would leave out the control address after the next start. It restarts nothing.
//
// The root password is 24 random letters and digits that nobody keeps. Where the control channel itself logs in with a
// password the step is warned and changes nothing: log in with a key instead.
//
// The leftover keys are every account's private SSH keys, and root's authorized keys but our own. What lets people in
// to other accounts stays: these accounts are the image's.
//
// A step that is done is not repeated by a worker that takes over, unless the guest has rebooted since. A connection
// that is lost is made again, three times at most, to the same key and the same boot; a guest that does not come back,
// or has rebooted, is reload.
//
// # Site scripts
//
// Options.ScriptsDir holds the site's own scripts: post-load/SET/NN-NAME, two digits and a name of a-z, 0-9, "." and
// "-". The set "all" runs on every guest, then the sets that the image names (image.post_load.scripts), in this order, each by
// the scripts' names. Each is a whole program with a "#!" line; files that end with .ps1 are for Windows. A comment among its first 20 lines may say
//
//	# berth: limit=2m on-failure=reload
//
// limit is how long it may run (300 s without: VCL Linux.pm); on-failure is what an exit code other than 0 or a passed
// limit means: warn (without), reload or fail. It finds BERTH_STAGE, BERTH_RESERVATION, BERTH_USER, BERTH_COMPUTER,
// BERTH_IMAGE, BERTH_REVISION, BERTH_ATTEMPT, BERTH_ADDRESS and BERTH_PUBLIC_ADDRESS in its environment and nothing on its
// standard input. The last lines of its output are kept in the load log, so it must print no secret. It may run twice,
// when a connection was lost in the middle.
package linux
