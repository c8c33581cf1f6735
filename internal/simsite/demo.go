package simsite

import _ "embed"

//go:embed demo.yaml
var demoScript []byte

// DemoScript returns the script of a site that shows what can happen to a load.
func DemoScript() (*Script, error) { return ParseScript("demo.yaml", demoScript) }
