package winos

// Scripts is the table of the scripts that guests know. When a script is changed, change its act and then its digest: the
// test says which one to write.
func Scripts() []Script {
	return []Script{
		{"activate", "a789e7f4a8a577fd247b612bbe0b99d2714e8f3d58e2da60f9f05f63c3ded705", actActivate},
		{"address", "828d60e9b62eaf800d570edafb3b588e4bb38321cb5a882c89eb89df799b6193", actAddress},
		{"copy", "1968608d99501204fe240a054735f6462603d958aa70f10031001c961399e0c3", actCopy},
		{"echo", "178f2c7b1dff9845752c312cd8b15eb615d44c8361a8f693cde23e9c78cfd059", actEcho},
		{"firewall", "50611d3b72d93e2195d0a962ee42cd2da9609ab42d757438c9f98f15e0c27bcf", actFirewall},
		{"hostname", "460715f7c9879c3c81b33eaccd81c3ec12c3f72e0db779ed2822a06df0923fe7", actHostname},
		{"join", "c69344b676e05e06f3f946b5a9be68ab63aa581e4f9d947976c50a83ac29c4a9", actJoin},
		{"password", "c309bb6e26d98241d579b588948926135162ab8012050f3254f6b47b09489256", actPassword},
		{"pending", "1dbae225fbd6a48c745a548bb096adad3c36bbbee0cedd2732bf5a13a02571a5", actPending},
		{"prompt", "3052f8297d92a1ac4ac835fca1d3c8aefa5dd71633fc33462b61df1783e14550", actPrompt},
		{"rdp", "06be6bcba5f222bdb2eed8e83198c1fb30f8d17def2a9ef6ad517fe47fab3628", actRDP},
		{"reboot", "1cac0aefd3c85cefbceea037f4afc279b3b6a05e6393c9c597061b8e257f58f0", actReboot},
		{"secrets", "a201cd01bb77a5b7db331a13f7c84d535b82b2e877189c3dc040c62607bcad24", actSecrets},
		{"service", "0aafde0267169aff4bafb1982bb844d571a336b829561f63d909af7565507d98", actService},
		{"setup", "32984659ec0f8eb2adc5b978f18a44d1544e638ea9509df4fa48523258538892", actSetup},
		{"site", "5bc41a1f7fca01a57c0e7f0d4ba09d08cff8bf7ae1e021e3cb0affbd83b5b11a", actSite},
		{"sleep", "0c876a18415bf48bae6d5c15a843af9ce38313998c4b376ca9113956844898b2", actSleep},
		{"static", "f77dd1fc7e9035b44e97eafd0af3ec11d381ee16cce63d66a4f8e59aaefd9d52", actStatic},
		{"tag", "d204fac1e83206a11bc6559ffdf9e65f86ad85a6a870e7dd0b1786d644fa483d", actTag},
		{"time", "a7845989b807a36239c2faebad0fb5e423048a7d8f138f743ab668d9ffb62bfe", actTime},
		{"updates", "18d77402e2f888f425203e60ec2c5db23106bcfdadd7a298bcd5517ca7a5cc05", actUpdates},
	}
}
