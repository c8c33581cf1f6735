//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"
)

// pageLimit is how long a page of the Web UI may take to show what is looked for, and pageTries how often it is opened for it.
const (
	pageLimit = 80 * time.Second
	pageTries = 4
)

// The window that the Web UI is looked at in.
const (
	windowWidth  = 1440
	windowHeight = 1000
)

// browser is a headless Chromium that looks at one Web UI.
type browser struct {
	ctx   context.Context
	webUI string
}

// newBrowser starts a browser that ends with the test. Without Chromium the test is skipped; with CI=true it fails.
func newBrowser(t *testing.T, webUI string) *browser {
	t.Helper()
	path := chromium(t)
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.WindowSize(windowWidth, windowHeight),
		chromedp.UserDataDir(filepath.Join(t.TempDir(), "profile")),
		// Nothing here comes from elsewhere, and root has no user namespace for Chromium's sandbox.
		chromedp.NoSandbox,
		chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Env("TZ=UTC"),
	)
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(cancel)
	require.NoError(t, chromedp.Do(ctx), "Chromium does not start")
	return &browser{ctx: ctx, webUI: webUI}
}

func chromium(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	const missing = "no Chromium on the PATH: run `make e2e` as root, or install it (Debian: apt-get install chromium)"
	if os.Getenv("CI") == "true" {
		t.Fatal(missing)
	}
	t.Skip("SKIP: " + missing)
	return ""
}

// open opens a page of the default namespace and waits until it shows each of the texts.
func (b *browser) open(t *testing.T, page string, texts ...string) {
	t.Helper()
	b.visit(t, b.webUI+"/namespaces/default/"+page, texts...)
}

// visit opens an address and waits until it shows each of the texts, in a window of the usual size. A page that does not show
// them soon is opened again: the Web UI shows an error once and for all when one of its requests gets no answer in time.
func (b *browser) visit(t *testing.T, address string, texts ...string) {
	t.Helper()
	for try := 1; ; try++ {
		ctx, cancel := context.WithTimeout(b.ctx, pageLimit/pageTries)
		err := chromedp.Do(ctx, chromedp.EmulateViewport(windowWidth, windowHeight))
		if err == nil {
			err = chromedp.Do(ctx, chromedp.Navigate(address))
		}
		missing := ""
		for _, text := range texts {
			if err == nil {
				missing, err = text, b.waitFor(ctx, text)
			}
		}
		cancel()
		if err == nil {
			return
		}
		if try == pageTries {
			t.Fatalf("%s does not show %q (%v); it shows:\n%s", address, missing, err, b.text())
		}
	}
}

// waitFor waits until the page shows a text.
func (b *browser) waitFor(ctx context.Context, text string) error {
	script := fmt.Sprintf("(%s).includes(%q)", allText, text)
	_, err := chromedp.Run(ctx, chromedp.Poll[bool](script, chromedp.WithPollingInterval(200*time.Millisecond), chromedp.WithPollingTimeout(0)))
	return err
}

// firstScreen waits until each of the texts stands where a person sees it who has just opened the page.
func (b *browser) firstScreen(t *testing.T, texts ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, pageLimit)
	defer cancel()
	for _, text := range texts {
		script := fmt.Sprintf(`(() => {
			const all = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
			while (all.nextNode()) {
				if (!all.currentNode.data.includes(%q)) continue;
				const range = document.createRange();
				range.selectNodeContents(all.currentNode);
				const box = range.getBoundingClientRect();
				if (box.width > 0 && box.top >= 0 && box.bottom <= innerHeight && box.left >= 0 && box.left < innerWidth) return true;
			}
			return false;
		})()`, text)
		if _, err := chromedp.Run(ctx, chromedp.Poll[bool](script, chromedp.WithPollingInterval(200*time.Millisecond), chromedp.WithPollingTimeout(0))); err != nil {
			t.Fatalf("the first screen does not show %q (%v); the page shows:\n%s", text, err, b.text())
		}
	}
}

// width returns how wide the first element of a CSS selector is, in pixels.
func (b *browser) width(t *testing.T, selector string) float64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, pageLimit)
	defer cancel()
	width, err := chromedp.Run(ctx, chromedp.Evaluate[float64](fmt.Sprintf("document.querySelector(%q).getBoundingClientRect().width", selector)))
	require.NoError(t, err)
	return width
}

// allText is JavaScript for the text of a page and its frames: the Web UI renders Markdown in a frame.
const allText = `[document, ...[...document.querySelectorAll("iframe")].map(f => f.contentDocument)].map(d => d && d.body ? d.body.innerText : "").join("\n")`

// chooseColumns has the list of workflows show these columns, as a person chooses them with the list's gear.
func (b *browser) chooseColumns(t *testing.T, labels ...string) {
	t.Helper()
	type column struct {
		Label string `json:"label"`
	}
	var columns []column
	for _, label := range labels {
		columns = append(columns, column{Label: label})
	}
	setting, err := json.Marshal(map[string][]column{"default": columns})
	require.NoError(t, err)
	b.open(t, "workflows")
	ctx, cancel := context.WithTimeout(b.ctx, pageLimit)
	defer cancel()
	_, err = chromedp.Run(ctx, chromedp.Evaluate[chromedp.Void](fmt.Sprintf("localStorage.setItem('namespace-workflow-table-columns', %q)", setting)))
	require.NoError(t, err)
}

// text returns what the page shows.
func (b *browser) text() string {
	ctx, cancel := context.WithTimeout(b.ctx, 5*time.Second)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Evaluate[string](allText))
	if err != nil {
		return err.Error()
	}
	return text
}

// html returns what the page and its frames are made of, with what is in it and not shown.
func (b *browser) html(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, pageLimit)
	defer cancel()
	const all = `[document, ...[...document.querySelectorAll("iframe")].map(f => f.contentDocument)].map(d => d && d.documentElement ? d.documentElement.outerHTML : "").join("\n")`
	html, err := chromedp.Run(ctx, chromedp.Evaluate[string](all))
	require.NoError(t, err)
	return html
}

// picture takes a picture of a window of that height, once the page has got used to it.
func (b *browser) picture(t *testing.T, height int64) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, pageLimit)
	defer cancel()
	require.NoError(t, chromedp.Do(ctx, chromedp.EmulateViewport(windowWidth, height)))
	drawn := `new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))`
	_, err := chromedp.Run(ctx, chromedp.Evaluate[bool](drawn, chromedp.EvalAwaitPromise))
	require.NoError(t, err)
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	require.NoError(t, err)
	return png
}

// reservationPage is the page of a run, such as "user-metadata" or "timeline"; "" is what a link from the list leads to.
func reservationPage(workflowID, runID, tab string) string {
	return strings.TrimSuffix("workflows/"+url.PathEscape(workflowID)+"/"+runID+"/"+tab, "/")
}
