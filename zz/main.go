package main
import ("fmt";"berth/osmodules/remote/powershell")
func main(){fmt.Print(powershell.Digest(powershell.CopyScript()))}
