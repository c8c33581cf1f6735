package winos

// Scripts is the table of the scripts that guests know. When a script is changed, change its act and then its digest: the
// test says which one to write.
func Scripts() []Script {
	return []Script{
		{"copy", "1968608d99501204fe240a054735f6462603d958aa70f10031001c961399e0c3", actCopy},
	}
}

func actCopy(c *Call) Fields {
	path := c.value("Path")
	c.write(path, c.Data)
	return Fields{"result": "done", "detail": "wrote bytes"}
}
