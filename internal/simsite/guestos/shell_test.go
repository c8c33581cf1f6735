package guestos

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// guest is a booted machine of a distribution.
func guest(t *testing.T, d Distribution, without ...string) *Machine {
	t.Helper()
	image, err := NewImage(ImageOptions{Distribution: d, Revision: "r3", AuthorizedKeys: "ssh-ed25519 AAAA site", Without: without})
	require.NoError(t, err)
	m := New(Options{Image: image, Name: "template", Port: 22001})
	m.Boot()
	return m
}

// sh runs a script and returns its exit status, output and errors.
func sh(t *testing.T, m *Machine, script, stdin string) (int, string, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	status := m.Run(ctx, script, strings.NewReader(stdin), &out, &errs, []string{"SSH_CONNECTION=127.0.0.1 40000 127.0.0.1 22001"})
	require.NoError(t, ctx.Err(), script)
	return status, out.String(), errs.String()
}

func TestScriptsDoWhatAShellDoes(t *testing.T) {
	cases := map[string]struct {
		script, stdin string
		want          string
		status        int
	}{
		"variables and arithmetic":       {script: `a=3; echo $((a * 2)) "${a}x" ${b:-none}`, want: "6 3x none\n"},
		"functions with locals":          {script: `f() { local x=$1; echo "got $x"; }; f one; f two`, want: "got one\ngot two\n"},
		"pipelines":                      {script: `printf 'b\na\nb\n' | sort -u | wc -l`, want: "2\n"},
		"here documents":                 {script: "cat <<END\nhome is $HOME\nEND", want: "home is /root\n"},
		"standard input":                 {script: `while IFS= read -r l; do echo "<$l>"; done`, stdin: "a b\n c\n", want: "<a b>\n< c>\n"},
		"the rest of the input":          {script: `read -r first; echo "$first"; cat`, stdin: "one\ntwo\nthree\n", want: "one\ntwo\nthree\n"},
		"exit status":                    {script: `exit 7`, status: 7},
		"errexit":                        {script: "set -e\nfalse\necho no", status: 1},
		"unset variables are refused":    {script: `set -u; echo $nothing`, status: 1},
		"command -v finds commands":      {script: `command -v nft; command -v cd; command -v firewall-cmd || echo missing`, want: "/usr/sbin/nft\ncd\nmissing\n"},
		"command -v finds functions":     {script: `f() { :; }; command -v f`, want: "f\n"},
		"an unknown command":             {script: `no-such-command; echo $?`, want: "127\n"},
		"sourcing":                       {script: `. /etc/os-release; echo "$ID $VERSION_ID"`, want: "debian 12\n"},
		"sh -c with parameters":          {script: `sh -c 'echo "$0 $1 $#"' name one two`, want: "name one 2\n"},
		"sh -s":                          {script: `sh -s one`, stdin: `echo "$1"`, want: "one\n"},
		"a script with its own path":     {script: `printf '#!/bin/sh\necho "$0 $1"\n' >/tmp/s && chmod 700 /tmp/s && /tmp/s x`, want: "/tmp/s x\n"},
		"a script without the x bit":     {script: `echo 'echo hi' >/tmp/s; /tmp/s 2>/dev/null; echo $?`, want: "126\n"},
		"globs":                          {script: `cd /tmp; touch b a .h; echo *; echo /etc/os-rel*`, want: "a b\n/etc/os-release\n"},
		"traps at exit":                  {script: `trap 'echo bye' EXIT INT TERM; echo hi`, want: "hi\nbye\n"},
		"umask":                          {script: `umask 077; echo x >/tmp/f; stat -c %a /tmp/f; umask 022; mkdir /tmp/d; stat -c %a /tmp/d`, want: "600\n755\n"},
		"links stay in the guest":        {script: `ln -s /etc /tmp/e; cat /tmp/e/image-release; cd /tmp/e; pwd; pwd -P`, want: "r3\n/tmp/e\n/etc\n"},
		"dot dot stops at the root":      {script: `cat /../../../etc/image-release`, want: "r3\n"},
		"sed":                            {script: `printf 'status: done\nx\n' | sed -n 's/^status: *//p'; printf 'a\nb\nc\n' | sed '/b/d;s/c/[&]/'; printf 'a\nb\nc\n' | sed -n '/b/,$p'`, want: "done\na\n[c]\nb\nc\n"},
		"sed in basic and extended":      {script: `echo aab | sed 's/a\{2\}/x/'; echo aab | sed -E 's/(a+)(b)/\2\1/'; echo a/b | sed 's|/|\n|'`, want: "xb\nbaa\na\nb\n"},
		"sed in place":                   {script: `printf 'k=1\n' >/tmp/f; sed -i 's/1/2/' /tmp/f; cat /tmp/f`, want: "k=2\n"},
		"sed with a class":               {script: `echo '2: ens192    inet 10.0.0.5/24 brd x scope global' | sed -n 's/.* inet \([0-9a-f.:]*\).*/\1/p'`, want: "10.0.0.5\n"},
		"grep":                           {script: `printf 'one\ntwo\n' | grep -c o; printf 'one\n' | grep -q x || echo no; printf 'a.b\naxb\n' | grep -F a.b; grep -e '^root:' /etc/passwd | cut -d: -f7`, want: "2\nno\na.b\n/bin/sh\n"},
		"tr and cut":                     {script: `printf 'a\tb\n' | tr '\n\t' '  '; echo; echo abc | tr a-c A-C; echo a,b,c | cut -d, -f2-; echo hello | cut -c 1-3`, want: "a b \nABC\nb,c\nhel\n"},
		"head and tail":                  {script: `seq 5 | head -n 2; seq 5 | tail -n 1; seq 5 | tail -n +4; seq 3 | head -1`, want: "1\n2\n5\n4\n5\n1\n"},
		"awk of the small kind":          {script: `printf 'a 1\nb 2\n' | awk '$2 > 1 {print $1}'; echo a:b | awk -F: '{print $2 "-" NF}'`, want: "b\nb-2\n"},
		"find":                           {script: `mkdir -p /tmp/x/y; touch /tmp/x/y/f.sh; find /tmp/x -name '*.sh' -type f; find /tmp/x -type d -exec echo {} \;`, want: "/tmp/x/y/f.sh\n/tmp/x\n/tmp/x/y\n"},
		"mktemp, mv and modes":           {script: `t=$(mktemp /tmp/a.XXXXXX); echo hi >"$t"; chmod 0640 "$t"; mv -f "$t" /tmp/b; stat -c '%a %s' /tmp/b; ls /tmp`, want: "640 3\nb\n"},
		"od and base64":                  {script: `printf AB | od -An -tx1; printf hi | base64; printf aGk= | base64 -d; echo; od -An -N4 -tx4 /dev/urandom | wc -c`, want: " 41 42\naGk=\nhi\n10\n"},
		"sha256sum":                      {script: `printf abc | sha256sum`, want: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  -\n"},
		"wc in arithmetic":               {script: `echo abc >/tmp/f; n=$(wc -c </tmp/f); test "$((n))" -eq 4 && echo four`, want: "four\n"},
		"xargs":                          {script: `printf 'a\nb\n' | xargs -n 1 echo x`, want: "x a\nx b\n"},
		"timeout":                        {script: `timeout 0.05 sleep 30; echo $?`, want: "124\n"},
		"dates":                          {script: `date -u -d @0 +%Y-%m-%dT%H:%M:%SZ; date -d @86400 +%s`, want: "1970-01-01T00:00:00Z\n86400\n"},
		"id":                             {script: `id -u; id -un; whoami`, want: "0\nroot\nroot\n"},
		"the kernel's names":             {script: `uname -s; hostname; cat /proc/sys/kernel/hostname`, want: "Linux\ntemplate\ntemplate\n"},
		"env":                            {script: `A=1 env | grep ^A=; export B=2; sh -c 'echo $B'; env -i sh -c 'echo "<$B>"'`, want: "A=1\n2\n<>\n"},
		"a pipeline's end is a subshell": {script: `x=1; echo a | { read x; exit 3; }; echo "$? $x"; f() { echo b | { exit 4; }; }; f || echo $?; eval 'echo c | { x=2; exit 5; }'; echo "$? $x"`, want: "3 1\n4\n5 1\n"},
		"a pipeline in a sourced file":   {script: `echo 'echo a | { exit 6; }; echo $?' >/tmp/s; . /tmp/s; trap 'true | { exit 7; }; echo "$?"' EXIT`, want: "6\n7\n"},
		"background jobs":                {script: `(sleep 0.01; echo late) & echo soon; wait`, want: "soon\nlate\n"},
		"bash is refused where dash is":  {script: `a=(1 2); echo ${a[0]}`, status: 2},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			status, out, errs := sh(t, guest(t, Debian12), c.script, c.stdin)
			require.Equal(t, c.want, out, errs)
			require.Equal(t, c.status, status, errs)
		})
	}
}

func TestNothingOfTheHostCanBeReachedFromAGuest(t *testing.T) {
	folder := t.TempDir()
	secret := filepath.Join(folder, "secret")
	require.NoError(t, os.WriteFile(secret, []byte("of the host"), 0o600))
	program := filepath.Join(folder, "program")
	require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\necho host >"+secret+"\n"), 0o700)) //nolint:gosec // it must be executable
	require.NoError(t, os.WriteFile(filepath.Join(folder, "sourced"), []byte("echo sourced from the host\n"), 0o600))
	t.Setenv("BERTH_HOST_SECRET", "of the environment")
	t.Setenv("TMPDIR", folder)
	scripts := map[string]string{
		"reading":                         `cat ` + secret,
		"reading by redirection":          `cat <` + secret,
		"reading by command substitution": `echo "$(<` + secret + `)"`,
		"reading above the root":          `cat /../../../../../../../../` + secret,
		"reading through a link":          `ln -s ` + secret + ` /tmp/l; cat /tmp/l`,
		"reading through a relative link": `ln -s ../../../../../../..` + secret + ` /tmp/l; cat /tmp/l`,
		"reading through /proc":           `cat /proc/self/environ /proc/self/root` + secret + ` /proc/1/root` + secret + ` /proc/self/cwd/secret`,
		"changing to a host's folder":     `cd ` + folder + ` && ls`,
		"listing":                         `ls ` + folder + `; echo ` + folder + `/*`,
		"testing":                         `test -e ` + secret + ` && echo found; test -r ` + secret + ` && echo found; [ -x ` + program + ` ] && echo found`,
		"sourcing":                        `. ` + folder + `/sourced`,
		"sourcing by PATH":                `PATH=` + folder + `; . sourced`,
		"executing":                       program,
		"executing by PATH":               `PATH=` + folder + ` program`,
		"executing by exec":               `exec ` + program,
		"executing by command":            `command ` + program,
		"executing by env":                `env ` + program,
		"executing by a shebang":          `printf '#!` + program + `\n' >/tmp/s; chmod 700 /tmp/s; /tmp/s`,
		"looking up a command":            `command -v ` + program + ` && echo found; PATH=` + folder + `; command -v program && echo found; type program 2>/dev/null && echo found; hash program 2>/dev/null && echo found`,
		"a host's commands":               `/usr/bin/perl -e 'print 1'; python3 -c 'print(1)'; go version; /bin/busybox`,
		"writing":                         `echo x >` + secret,
		"appending":                       `echo x >>` + secret,
		"writing through a link":          `ln -s ` + folder + ` /tmp/d; echo x >/tmp/d/secret; cp /etc/passwd /tmp/d/copied`,
		"removing":                        `rm -rf ` + folder + ` / /*`,
		"the environment":                 `env; echo "$BERTH_HOST_SECRET"; set; echo ~/x`,
		"users of the host":               `echo ~nobody ~games ~www-data`,
		"process substitution":            `cat <(cat ` + secret + `)`,
		"process substitution in eval":    `eval 'cat <(echo x)'`,
		"temporary files":                 `echo "${TMPDIR:-none}"; mktemp`,
		"bash builtins":                   `pushd ` + folder + `; mapfile a <` + secret + `; source ` + folder + `/sourced; enable -f x; history; shopt -s extglob`,
		"a fifo":                          `mkfifo /tmp/f; cat </tmp/f`,
		"sed's files":                     `echo x | sed 'r ` + secret + `'; echo x | sed -n 'w ` + folder + `/written'; sed -i s/of/OF/ ` + secret,
		"grep's and others' files":        `grep -r host ` + folder + `; sort -o ` + folder + `/sorted /etc/passwd; tee ` + folder + `/teed </etc/passwd; find / -name secret`,
	}
	for name, script := range scripts {
		t.Run(name, func(t *testing.T) {
			_, out, errs := sh(t, guest(t, Debian12), script, "")
			for _, text := range []string{out, errs} {
				require.NotContains(t, text, "of the host")
				require.NotContains(t, text, "of the environment")
				require.NotContains(t, text, "sourced from")
				require.NotContains(t, text, "found\n"+"found")
				require.NotContains(t, text, "/root/go")
			}
			if strings.HasPrefix(name, "test") || strings.HasPrefix(name, "looking") {
				require.NotRegexp(t, `(?m)^found$`, out)
			}
			kept, err := os.ReadFile(secret)
			require.NoError(t, err)
			require.Equal(t, "of the host", string(kept))
			entries, err := os.ReadDir(folder)
			require.NoError(t, err)
			require.Len(t, entries, 3, "a guest made something in a folder of the host's")
		})
	}
}

func TestAGuestsDiskIsItsOwn(t *testing.T) {
	image, err := NewImage(ImageOptions{Distribution: Debian12, AuthorizedKeys: "ssh-ed25519 AAAA site"})
	require.NoError(t, err)
	one, two := New(Options{Image: image, Name: "one"}), New(Options{Image: image, Name: "two"})
	one.Boot()
	two.Boot()
	_, _, errs := sh(t, one, `echo changed >/etc/image-release; rm -rf /etc/ssh; echo root:secret | chpasswd; hostname here; mkdir -p /run/mine /var/kept`, "")
	require.Empty(t, errs)
	_, out, _ := sh(t, two, `cat /etc/image-release; ls /etc/ssh; hostname`, "")
	require.NotContains(t, out, "changed")
	require.Contains(t, out, "sshd_config")
	require.Contains(t, out, "template\n")
	require.True(t, one.CheckPassword("root", "secret"))
	require.True(t, two.CheckPassword("root", ImagePassword))
	require.False(t, one.CheckPassword("root", ImagePassword))

	before := one.BootID()
	one.Boot()
	require.NotEqual(t, before, one.BootID())
	_, out, _ = sh(t, one, `cat /etc/image-release /proc/sys/kernel/random/boot_id; test -d /run/mine || echo run is empty; test -d /var/kept && echo var is kept`, "")
	require.Equal(t, "changed\n"+one.BootID()+"\nrun is empty\nvar is kept\n", out)
}

func TestADiskHasAnEnd(t *testing.T) {
	m := guest(t, Debian12)
	err := m.WriteFile("/tmp/big", make([]byte, maxFileBytes+1), 0o600)
	require.ErrorContains(t, err, "no space left")
	require.NoError(t, m.WriteFile("/tmp/small", []byte("x"), 0o600))
}

func TestAScriptThatNeverEndsEndsWithItsBoot(t *testing.T) {
	for name, script := range map[string]string{"a loop": `while :; do :; done`, "a sleep": `sleep 3600`, "a pipeline": `sleep 3600 | cat`,
		"a read": `read -r x`, "a cat": `cat`, "itself": `echo 'sh /tmp/s' >/tmp/s; sh /tmp/s`, "sed": `echo x | sed ':a;ba'`} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			reader, writer, err := os.Pipe()
			require.NoError(t, err)
			defer writer.Close()
			stop := context.AfterFunc(ctx, func() { _ = reader.Close() }) // as the end of a session does
			defer stop()
			status := guest(t, Debian12).Run(ctx, script, reader, &bytes.Buffer{}, &bytes.Buffer{}, nil)
			require.NotZero(t, status)
		})
	}
}
