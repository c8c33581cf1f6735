package xcatd

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// exchange is one request of 15-raw-xml-3001.txt and the bytes that xcatd answered it with, read by read.
type exchange struct {
	name    string
	request string
	answers []string
	eof     bool // the daemon closed the connection without an answer
}

func exchanges(t *testing.T) map[string]exchange {
	text := testFile(t, "15-raw-xml-3001.txt")
	all := map[string]exchange{}
	header := regexp.MustCompile(`^(>>>|<<< \+[0-9.]+s) (\d+) bytes\n`)
	for _, section := range strings.Split(text, "##### ")[1:] {
		name, rest, _ := strings.Cut(section, "\n")
		if strings.HasPrefix(name, "NO NEWLINE") {
			continue
		}
		e := exchange{name: strings.TrimSpace(name)}
		_, rest, _ = strings.Cut(rest, "\n") // the TLS session
		for {
			rest = strings.TrimLeft(rest, "\n")
			found := header.FindStringSubmatch(rest)
			if found == nil {
				break
			}
			n, err := strconv.Atoi(found[2])
			require.NoError(t, err)
			rest = rest[len(found[0]):]
			require.GreaterOrEqual(t, len(rest), n, name)
			if found[1] == ">>>" {
				e.request = rest[:n]
			} else {
				e.answers = append(e.answers, rest[:n])
			}
			rest = rest[n:]
		}
		e.eof = strings.HasPrefix(rest, "(EOF)")
		all[e.name] = e
	}
	require.Equal(t, 25, len(all))
	return all
}

// typed is one command of the other transcripts and what its tool wrote.
type typed struct {
	words  []string
	output Output
}

func commands(t *testing.T, file string) []typed {
	var all []typed
	for _, section := range strings.Split("\n"+testFile(t, file), "\n$ ")[1:] {
		line, rest, _ := strings.Cut(section, "\n")
		_, rest, ok := strings.Cut(rest, "--- stdout\n")
		if !ok {
			continue
		}
		stdout, rest, _ := strings.Cut(rest, "--- stderr\n")
		stderr, rest, ok := strings.Cut(rest, "--- rc=")
		require.True(t, ok, line)
		code, err := strconv.Atoi(rest[:strings.Index(rest, " ")])
		require.NoError(t, err)
		all = append(all, typed{strings.Fields(strings.ReplaceAll(line, `\`, "")), Output{stdout, stderr, code}})
	}
	require.NotEmpty(t, all)
	return all
}

func testFile(t *testing.T, name string) string {
	text, err := os.ReadFile(filepath.Join("testdata", name))
	require.NoError(t, err)
	return string(text)
}

// Every command that was typed at a real xcatd 2.19.0 is judged as it went, whatever its exit code said.
func TestTheToolsTranscriptsAreJudged(t *testing.T) {
	want := map[string]Kind{ // those that have failed
		"lsdef -t node nosuch":            UnknownNode,
		"lsdef -t node nosuch -i status":  UnknownNode,
		"nodels nosuch":                   UnknownNode,
		"lsdef -t osimage nosuchimg":      UnknownOSImage,
		"lsdef -t node n01 -i nosuchattr": Other,
		"rpower n04 stat":                 BMCTimeout,
		"rpower n01,n04 stat":             BMCTimeout,
		"rpower nosuch stat":              UnknownNode,
		"rpower n01 frobnicate":           Other,
		"rpower n01":                      Other,
		"nodeset n01 osimage=nosuchimg":   UnknownOSImage,
		"nodeset nosuch osimage=rocky9.4-x86_64-install-compute": UnknownNode,
		"nodeset n01":                          Other,
		"nodeset n01 install":                  Other,
		"nodeset n01 frob":                     Other,
		"nodeset n02 offline":                  Other, // it is offline, and its DHCP entry is not
		"nodeset n01 shell":                    Other,
		"rsetboot n04 net":                     BMCTimeout,
		"rsetboot n01 bogus":                   BMCRefusal,
		"nodestat nosuch":                      UnknownNode,
		"nodestat":                             Other,
		"nodestat n01 -f":                      Other, // exit code 0, and not a word about the node
		"chdef -t node nosuch99 usercomment=x": Other,
		"nodech nosuch98 nodelist.comments=x":  UnknownNode,
	}
	met := map[string]bool{}
	for _, file := range []string{"01-query.txt", "02-rpower.txt", "03-nodeset.txt", "04-rsetboot.txt", "05-nodestat-off.txt", "20-clear-status.txt"} {
		for _, one := range commands(t, file) {
			command := Command{Name: one.words[0], Args: one.words[1:]}
			switch command.Name {
			case "rpower", "nodeset", "rsetboot", "nodestat", "nodels":
				if len(command.Args) > 0 && command.Args[0] != "all" {
					command.Nodes, command.Args = strings.Split(command.Args[0], ","), command.Args[1:]
				}
			}
			name := strings.Join(one.words, " ")
			err := judge(command, read(command, one.output))
			if kind, failed := want[name]; failed {
				require.Error(t, err, name)
				require.Equal(t, kind, KindOf(err), "%s: %v", name, err)
				met[name] = true
				continue
			}
			require.NoError(t, err, name)
		}
	}
	require.Len(t, met, len(want))
}

func TestTheToolsAnswersAreReadByNode(t *testing.T) {
	command := Command{Name: "rpower", Nodes: []string{"n01", "n04"}, Args: []string{"stat"}}
	for _, one := range commands(t, "02-rpower.txt") {
		if strings.Join(one.words, " ") != "rpower n01,n04 stat" {
			continue
		}
		answer := read(command, one.output)
		text, ok := answer.Of("n01")
		require.True(t, ok)
		require.Equal(t, "off", text)
		require.Contains(t, answer.Lines, Line{Node: "n04", Kind: Failure, Text: "ERROR: timeout"})
		return
	}
	t.Fatal("no such command in the transcript")
}
