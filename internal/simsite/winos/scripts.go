package winos

// Scripts is the table of the scripts that guests know. When a script is changed, change its act and then its digest: the
// test says which one to write.
func Scripts() []Script {
	return []Script{
		{"activate", "a789e7f4a8a577fd247b612bbe0b99d2714e8f3d58e2da60f9f05f63c3ded705", actActivate},
		{"address", "828d60e9b62eaf800d570edafb3b588e4bb38321cb5a882c89eb89df799b6193", actAddress},
		{"copy", "1968608d99501204fe240a054735f6462603d958aa70f10031001c961399e0c3", actCopy},
		{"echo", "482bbfebde6c6ff460a5c99808afa5e0f78ea21d80d8652ff63b39d2e1fcf74f", actEcho},
		{"firewall", "dc33a80cf0ccf35a1d8da1a2883d2bae757b65956189ab4dfd143958faf38d1c", actFirewall},
		{"hostname", "460715f7c9879c3c81b33eaccd81c3ec12c3f72e0db779ed2822a06df0923fe7", actHostname},
		{"join", "c69344b676e05e06f3f946b5a9be68ab63aa581e4f9d947976c50a83ac29c4a9", actJoin},
		{"password", "c309bb6e26d98241d579b588948926135162ab8012050f3254f6b47b09489256", actPassword},
		{"pending", "1dbae225fbd6a48c745a548bb096adad3c36bbbee0cedd2732bf5a13a02571a5", actPending},
		{"prompt", "3052f8297d92a1ac4ac835fca1d3c8aefa5dd71633fc33462b61df1783e14550", actPrompt},
		{"rdp", "e77fa4cc0397f1f1663b9703dc46eeb7ef7eedc13c8607ea2d4c34c31352b600", actRDP},
		{"reboot", "34e24b67bbb5afebd96682b0a58a7aca7198e9334644e496e976ee68343c248b", actReboot},
		{"secrets", "7c5560b521d6b7fbd1d560393b6f9d75bc4098a72df38fdf3d5ee09a6120c80f", actSecrets},
		{"service", "0aafde0267169aff4bafb1982bb844d571a336b829561f63d909af7565507d98", actService},
		{"setup", "afec5e4b6f6e6d2afe7ad8c6fb715869a5d83a9dbf5e7db5da0acd4b14957cbd", actSetup},
		{"site", "5bc41a1f7fca01a57c0e7f0d4ba09d08cff8bf7ae1e021e3cb0affbd83b5b11a", actSite},
		{"sleep", "0c876a18415bf48bae6d5c15a843af9ce38313998c4b376ca9113956844898b2", actSleep},
		{"static", "f77dd1fc7e9035b44e97eafd0af3ec11d381ee16cce63d66a4f8e59aaefd9d52", actStatic},
		{"tag", "d204fac1e83206a11bc6559ffdf9e65f86ad85a6a870e7dd0b1786d644fa483d", actTag},
		{"time", "029f9638971e4cb0946dfb5d2b6753d01cf75514150d1487edfa9be383f55e57", actTime},
		{"updates", "18d77402e2f888f425203e60ec2c5db23106bcfdadd7a298bcd5517ca7a5cc05", actUpdates},
	}
}
