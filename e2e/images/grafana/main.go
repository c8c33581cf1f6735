// Grafana stands in for Grafana in the end-to-end tests, where it cannot be had: it reads the files that Grafana would be
// provisioned with, and asks the data source what each panel would ask. It draws nothing.
//
//	GET /api/health   that everything could be read
//	GET /panels       every query of every panel, with how many series it has just now
package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const provisioning = "/etc/grafana/provisioning"

// dataSource is an entry of a file in provisioning/datasources.
type dataSource struct {
	UID       string `yaml:"uid"`
	Type      string `yaml:"type"`
	URL       string `yaml:"url"`
	IsDefault bool   `yaml:"isDefault"`
}

type panel struct {
	Title      string `json:"title"`
	Type       string `json:"type"`
	DataSource *ref   `json:"datasource"`
	Targets    []struct {
		Expr       string `json:"expr"`
		DataSource *ref   `json:"datasource"`
	} `json:"targets"`
	Panels []panel `json:"panels"` // of a row that is folded
}

type ref struct {
	UID string `json:"uid"`
}

type dashboard struct {
	Title      string  `json:"title"`
	Panels     []panel `json:"panels"`
	Templating struct {
		List []struct {
			Name     string `json:"name"`
			AllValue string `json:"allValue"`
		} `json:"list"`
	} `json:"templating"`
}

// query is what a panel asks.
type query struct {
	Dashboard string `json:"dashboard"`
	Panel     string `json:"panel"`
	Query     string `json:"query"` // with its variables filled in
	Series    int    `json:"series"`
	Error     string `json:"error,omitempty"`

	source string // URL
}

func main() {
	queries, err := read()
	if err != nil {
		log.Fatalf("what Grafana is provisioned with has a fault: %v", err)
	}
	log.Printf("%d queries", len(queries))
	http.HandleFunc("GET /api/health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, `{"database": "ok"}`) })
	http.HandleFunc("GET /panels", func(w http.ResponseWriter, _ *http.Request) {
		answers := make([]query, len(queries))
		for i, q := range queries {
			answers[i] = q.ask()
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answers)
	})
	server := http.Server{Addr: ":3000", ReadHeaderTimeout: 5 * time.Second}
	log.Fatal(server.ListenAndServe())
}

// read reads everything that Grafana would.
func read() ([]query, error) {
	if file := os.Getenv("GF_SECURITY_ADMIN_PASSWORD__FILE"); file != "" {
		if _, err := os.ReadFile(file); err != nil {
			return nil, err
		}
	}
	var sources struct {
		DataSources []dataSource `yaml:"datasources"`
	}
	if err := readAll(filepath.Join(provisioning, "datasources"), &sources); err != nil {
		return nil, err
	}
	byUID := map[string]dataSource{}
	for _, s := range sources.DataSources {
		if s.Type != "prometheus" {
			return nil, fmt.Errorf("data source %s is a %s: only prometheus can be asked here", s.UID, s.Type)
		}
		byUID[s.UID] = s
		if s.IsDefault {
			byUID[""] = s
		}
	}
	var providers struct {
		Providers []struct {
			Type    string `yaml:"type"`
			Options struct {
				Path string `yaml:"path"`
			} `yaml:"options"`
		} `yaml:"providers"`
	}
	if err := readAll(filepath.Join(provisioning, "dashboards"), &providers); err != nil {
		return nil, err
	}
	var queries []query
	for _, p := range providers.Providers {
		files, err := filepath.Glob(filepath.Join(p.Options.Path, "*.json"))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			var d dashboard
			if err := json.Unmarshal(text, &d); err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			found, err := d.queries(d.Panels, byUID)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			queries = append(queries, found...)
		}
	}
	if len(queries) == 0 {
		return nil, errors.New("no panel asks anything")
	}
	return queries, nil
}

func readAll(folder string, into any) error {
	files, err := filepath.Glob(filepath.Join(folder, "*.y*ml"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("there is no file in %s", folder)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := yaml.Unmarshal(text, into); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return nil
}

func (d dashboard) queries(panels []panel, sources map[string]dataSource) ([]query, error) {
	// Grafana fills in its own times, and for a variable of which all is chosen its allValue.
	replace := []string{"$__rate_interval", "1m", "$__interval", "15s", "$__range", "15m"}
	for _, v := range d.Templating.List {
		all := cmp.Or(v.AllValue, ".*")
		replace = append(replace, "${"+v.Name+"}", all, "$"+v.Name, all)
	}
	fill := strings.NewReplacer(replace...)
	var queries []query
	for _, p := range panels {
		inner, err := d.queries(p.Panels, sources)
		if err != nil {
			return nil, err
		}
		queries = append(queries, inner...)
		for _, target := range p.Targets {
			uid := cmp.Or(target.DataSource, p.DataSource, &ref{}).UID
			source, ok := sources[uid]
			if !ok {
				return nil, fmt.Errorf("panel %q: no data source has the uid %q", p.Title, uid)
			}
			queries = append(queries, query{Dashboard: d.Title, Panel: p.Title, Query: fill.Replace(target.Expr), source: source.URL})
		}
	}
	return queries, nil
}

// ask asks the data source now.
func (q query) ask() query {
	client := http.Client{Timeout: 20 * time.Second}
	answer, err := client.Get(strings.TrimSuffix(q.source, "/") + "/api/v1/query?query=" + url.QueryEscape(q.Query))
	if err != nil {
		q.Error = err.Error()
		return q
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	var said struct {
		Error string `json:"error"`
		Data  struct {
			Result []json.RawMessage `json:"result"`
		} `json:"data"`
	}
	if err == nil {
		err = json.Unmarshal(text, &said)
	}
	if err != nil {
		q.Error = err.Error()
		return q
	}
	q.Series, q.Error = len(said.Data.Result), said.Error
	return q
}
