package simsite

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
)

// maxRequest bounds what the control API reads.
const maxRequest = 1 << 20

// controlAPI is the HTTP API that changes the site while it runs:
//
//	GET    /status                  everything: guests, counts, calls
//	GET    /guests/NAME             one guest
//	POST   /guests/NAME             {"loads": [...]} or {"boots": [...]}: how the computer behaves from its next load on
//	POST   /guests/NAME/do/ACTION   reboot, power-off, hang, drop, new-key
//	GET    /guests/NAME/files/PATH  a file of the guest's disk
//	POST   /expire-sessions         every session of the vCenter ends
//	POST   /fault                   one fault, as in a script's vcenter.faults
//	DELETE /fault                   no faults any more
//	POST   /computers               a list of computers, as in a script; the catalog is written anew
//	POST   /calls/reset             calls are counted anew
//
// Bodies are JSON or YAML. Errors are {"error": "..."}.
func (s *Site) controlAPI() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.Status()) })
	mux.HandleFunc("GET /guests/{name}", func(w http.ResponseWriter, r *http.Request) {
		g, err := s.Guest(r.PathValue("name"))
		if err != nil {
			refuse(w, err)
			return
		}
		answer(w, g)
	})
	mux.HandleFunc("POST /guests/{name}", func(w http.ResponseWriter, r *http.Request) {
		var b Behaviours
		if read(w, r, &b) {
			done(w, s.SetGuest(r.PathValue("name"), b))
		}
	})
	mux.HandleFunc("POST /guests/{name}/do/{action}", func(w http.ResponseWriter, r *http.Request) {
		done(w, s.Do(r.PathValue("name"), r.PathValue("action")))
	})
	mux.HandleFunc("GET /guests/{name}/files/{path...}", func(w http.ResponseWriter, r *http.Request) {
		text, err := s.ReadFile(r.PathValue("name"), "/"+r.PathValue("path"))
		if err != nil {
			refuse(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = w.Write(text)
	})
	mux.HandleFunc("POST /expire-sessions", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]int{"ended": s.ExpireSessions()})
	})
	mux.HandleFunc("POST /fault", func(w http.ResponseWriter, r *http.Request) {
		var f Fault
		if read(w, r, &f) {
			done(w, s.AddFault(f))
		}
	})
	mux.HandleFunc("DELETE /fault", func(w http.ResponseWriter, _ *http.Request) {
		s.ClearFaults()
		done(w, nil)
	})
	mux.HandleFunc("POST /computers", func(w http.ResponseWriter, r *http.Request) {
		var computers []Computer
		if read(w, r, &computers) {
			err := s.AddComputers(computers...)
			if err == nil {
				err = s.WriteCatalog()
			}
			done(w, err)
		}
	})
	mux.HandleFunc("POST /calls/reset", func(w http.ResponseWriter, _ *http.Request) {
		s.ResetCalls()
		done(w, nil)
	})
	return mux
}

func read(w http.ResponseWriter, r *http.Request, into any) bool {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err == nil {
		if err = decodeStrict(text, into); err != nil {
			err = readable(err)
		}
	}
	if err != nil {
		refuse(w, err)
		return false
	}
	return true
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(v)
}

func done(w http.ResponseWriter, err error) {
	if err != nil {
		refuse(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func refuse(w http.ResponseWriter, err error) {
	status := http.StatusBadRequest
	if errors.As(err, new(*NoGuestError)) || errors.Is(err, fs.ErrNotExist) {
		status = http.StatusNotFound
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
}
