package rooms

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// pkg is what the checks need of `go list -json`.
type pkg struct {
	ImportPath   string
	Name         string
	Dir          string
	GoFiles      []string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

const module = "berth"

// room is a rule for the packages under a folder.
type room struct {
	path string // "x" for one package, "x/..." for what is below it
	// ours are the packages of this module that it may import, besides those in the same implementation's folder.
	ours []string
	// vendors are the only modules of others that it may import; nil allows all.
	vendors []string
	// never may not be imported by tests either.
	never []string
	why   string
}

// rooms are DESIGN.md's "who may know whom". The first that fits a package applies; a package that none fits may import
// what it likes.
func rooms() []room {
	return []room{
		{path: "reservation", ours: []string{}, vendors: []string{},
			why: "the nouns know nothing of ours, no Temporal and no vendor"},
		{path: "workflows", ours: []string{"reservation", "activities", "osmodules"}, vendors: []string{"go.temporal.io"},
			why: "workflows know nouns, activities' names, the table of limits, and time"},
		{path: "activities", ours: []string{"reservation", "provisioners", "osmodules"},
			why: "activities know the interfaces, never an implementation"},
		{path: "provisioners", ours: []string{"reservation"}, vendors: []string{},
			why: "the interface knows no implementation and no vendor"},
		// internal/hostkey makes a key pair for a guest that is about to be made; internal/span puts calls into a trace. They
		// talk to nobody.
		{path: "provisioners/...", ours: []string{"reservation", "provisioners", "internal/hostkey", "internal/span"}, never: []string{"osmodules", "go.temporal.io"},
			why: "a provisioner never knows an OS module, and no module knows Temporal"},
		{path: "osmodules", ours: []string{"reservation", "osmodules/remote"}, vendors: []string{},
			why: "the interface knows no implementation and no vendor"},
		{path: "osmodules/remote/...", ours: []string{"reservation", "osmodules/remote", "internal/span"}, never: []string{"provisioners", "go.temporal.io"},
			why: "a control channel knows neither a provisioner nor Temporal"},
		{path: "osmodules/remote", ours: []string{"reservation"}, vendors: []string{},
			why: "the interface knows no implementation and no vendor"},
		{path: "osmodules/...", ours: []string{"reservation", "osmodules", "osmodules/climb", "osmodules/sitescripts", "osmodules/remote", "osmodules/remote/..."},
			never: []string{"provisioners", "go.temporal.io"},
			why:   "an OS module never knows a provisioner, and no module knows Temporal"},
	}
}

func TestEveryRoomImportsOnlyWhomItMayKnow(t *testing.T) {
	for _, p := range packages(t) {
		own := strings.TrimPrefix(p.ImportPath, module+"/")
		for _, r := range rooms() {
			if !fits(r.path, own) {
				continue
			}
			for _, fault := range r.faults(own, p) {
				t.Errorf("%s imports %s: %s", own, fault, r.why)
			}
			break
		}
	}
}

func (r room) faults(own string, p pkg) []string {
	var faults []string
	for _, imported := range p.Imports {
		path, ours := strings.CutPrefix(imported, module+"/")
		var allowed bool
		switch {
		case ours:
			allowed = sameImplementation(own, path) || slices.ContainsFunc(r.ours, func(rule string) bool { return fits(rule, path) })
		case !strings.Contains(strings.SplitN(imported, "/", 2)[0], "."):
			allowed = true // the standard library
		default:
			allowed = r.vendors == nil || slices.ContainsFunc(r.vendors, func(v string) bool { return below(v, imported) })
		}
		if !allowed {
			faults = append(faults, imported)
		}
	}
	for _, imported := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
		for _, never := range r.never {
			if below(never, strings.TrimPrefix(imported, module+"/")) {
				faults = append(faults, imported)
			}
		}
	}
	slices.Sort(faults)
	return slices.Compact(faults)
}

// sameImplementation says whether two packages belong to one implementation: provisioners/vmware and its sub-folders.
func sameImplementation(a, b string) bool {
	first, second := strings.Split(a, "/"), strings.Split(b, "/")
	return len(first) >= 2 && len(second) >= 2 && slices.Equal(first[:2], second[:2]) && first[0] != "internal"
}

func fits(rule, path string) bool {
	if folder, deep := strings.CutSuffix(rule, "/..."); deep {
		return strings.HasPrefix(path, folder+"/")
	}
	return path == rule
}

func below(folder, path string) bool { return path == folder || strings.HasPrefix(path, folder+"/") }

// A provisioner may make a host key for a guest; it may not talk to the guest.
func TestNoProvisionerTalksToAGuestBySSH(t *testing.T) {
	dials := []string{"Dial", "NewClientConn", "NewClient", "ClientConfig"}
	eachFile(t, func(p pkg, name string, file *ast.File, at func(ast.Node) token.Position) {
		if !strings.HasPrefix(p.ImportPath, module+"/provisioners") {
			return
		}
		ssh := importedAs(file, "golang.org/x/crypto/ssh")
		ast.Inspect(file, func(n ast.Node) bool {
			if name, ok := selected(n, ssh); ok && slices.Contains(dials, name) {
				t.Errorf("%s: ssh.%s in a provisioner: only OS modules talk to the guest", at(n), name)
			}
			return true
		})
	})
}

func TestOnlyMainProgramsReadFlagsAndTheEnvironment(t *testing.T) {
	// The one exception: where the Temporal CLI stands is a property of the machine, as the PATH is.
	const exception = module + "/internal/devserver"
	reads := []string{"Getenv", "LookupEnv", "Environ"}
	eachFile(t, func(p pkg, name string, file *ast.File, at func(ast.Node) token.Position) {
		if p.Name == "main" || p.ImportPath == exception {
			return
		}
		if alias := importedAs(file, "flag"); alias != "" {
			t.Errorf("%s imports flag: only a main program reads flags", at(file))
		}
		osName := importedAs(file, "os")
		ast.Inspect(file, func(n ast.Node) bool {
			if name, ok := selected(n, osName); ok && slices.Contains(reads, name) {
				t.Errorf("%s: os.%s: only a main program reads the environment", at(n), name)
			}
			return true
		})
	})
}

func TestNoPackageHasStateOrInit(t *testing.T) {
	eachFile(t, func(p pkg, name string, file *ast.File, at func(ast.Node) token.Position) {
		for _, decl := range file.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil && d.Name.Name == "init" {
					t.Errorf("%s: init(): main builds what is needed", at(d))
				}
			case *ast.GenDecl:
				if d.Tok != token.VAR || embedded(d) {
					continue
				}
				for _, spec := range d.Specs {
					for _, name := range spec.(*ast.ValueSpec).Names {
						if name.Name != "_" { // "var _ Interface = ..." holds no state
							t.Errorf("%s: package variable %s: use a function, a constant or a field", at(name), name.Name)
						}
					}
				}
			}
		}
	})
}

// embedded says whether a declaration is a go:embed, which has to be a variable.
func embedded(d *ast.GenDecl) bool {
	comments := []*ast.CommentGroup{d.Doc}
	for _, spec := range d.Specs {
		comments = append(comments, spec.(*ast.ValueSpec).Doc)
	}
	for _, group := range comments {
		if group == nil {
			continue
		}
		for _, comment := range group.List {
			if strings.HasPrefix(comment.Text, "//go:embed ") {
				return true
			}
		}
	}
	return false
}

// selected returns X of "name.X".
func selected(n ast.Node, name string) (string, bool) {
	selector, ok := n.(*ast.SelectorExpr)
	if !ok || name == "" {
		return "", false
	}
	x, ok := selector.X.(*ast.Ident)
	return selector.Sel.Name, ok && x.Name == name
}

// importedAs returns the name that a file knows a package by, "" if it does not import it.
func importedAs(file *ast.File, path string) string {
	for _, spec := range file.Imports {
		if spec.Path.Value != `"`+path+`"` {
			continue
		}
		if spec.Name != nil {
			return spec.Name.Name
		}
		return path[strings.LastIndex(path, "/")+1:]
	}
	return ""
}

func eachFile(t *testing.T, visit func(p pkg, name string, file *ast.File, at func(ast.Node) token.Position)) {
	t.Helper()
	for _, p := range packages(t) {
		for _, name := range p.GoFiles {
			set := token.NewFileSet()
			path := filepath.Join(p.Dir, name)
			file, err := parser.ParseFile(set, path, nil, parser.ParseComments)
			require.NoError(t, err)
			visit(p, name, file, func(n ast.Node) token.Position {
				at := set.Position(n.Pos())
				at.Filename = strings.TrimPrefix(p.ImportPath, module+"/") + "/" + name
				return at
			})
		}
	}
}

// packages lists this module's packages. A rule that finds none would hold for ever, so that is a failure.
func packages(t *testing.T) []pkg {
	t.Helper()
	// -e: a package that does not compile is the compiler's to report.
	list := exec.Command("go", "list", "-e", "-json=ImportPath,Name,Dir,GoFiles,Imports,TestImports,XTestImports", module+"/...")
	var stderr strings.Builder
	list.Stderr = &stderr
	out, err := list.Output()
	require.NoError(t, err, stderr.String())
	var all []pkg
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		all = append(all, p)
	}
	for _, r := range rooms() {
		require.True(t, slices.ContainsFunc(all, func(p pkg) bool { return fits(r.path, strings.TrimPrefix(p.ImportPath, module+"/")) }),
			fmt.Sprintf("no package is in the room %s: the rule no longer fits the tree", r.path))
	}
	return all
}

func TestARoomNamesEveryImportThatItMayNotHave(t *testing.T) {
	for name, c := range map[string]struct {
		own     string
		imports []string
		tests   []string
		want    []string
	}{
		"the nouns import Temporal":                {own: "reservation", imports: []string{"fmt", "go.temporal.io/sdk/temporal"}, want: []string{"go.temporal.io/sdk/temporal"}},
		"a workflow imports a provisioner":         {own: "workflows", imports: []string{"berth/reservation", "berth/provisioners"}, want: []string{"berth/provisioners"}},
		"a provisioner's test knows an OS module":  {own: "provisioners/vmware", imports: []string{"berth/provisioners"}, tests: []string{"berth/osmodules/linux"}, want: []string{"berth/osmodules/linux"}},
		"a provisioner has a folder of its own":    {own: "provisioners/vmware", imports: []string{"berth/provisioners/vmware/fence", "github.com/vmware/govmomi"}},
		"a provisioner knows another one":          {own: "provisioners/vmware", imports: []string{"berth/provisioners/xcat"}, want: []string{"berth/provisioners/xcat"}},
		"an activity knows an implementation":      {own: "activities", imports: []string{"berth/osmodules", "berth/osmodules/linux"}, want: []string{"berth/osmodules/linux"}},
		"an OS module uses its channel":            {own: "osmodules/linux", imports: []string{"berth/osmodules/remote/ssh"}},
		"an OS module imports what is ours inside": {own: "osmodules/linux", imports: []string{"berth/internal/devserver"}, want: []string{"berth/internal/devserver"}},
		"a main program imports anything":          {own: "worker", imports: []string{"berth/provisioners/vmware", "berth/internal/catalog"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, r := range rooms() {
				if fits(r.path, c.own) {
					got = r.faults(c.own, pkg{Imports: c.imports, TestImports: c.tests})
					break
				}
			}
			require.Equal(t, c.want, got)
		})
	}
}
