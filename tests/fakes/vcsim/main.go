// vcsim: govmomi's vCenter simulator, served for the contract tests.
//
// Prints the address it serves on as one line, then serves until its standard input ends, so that
// it never outlives the test that started it.
package main

import (
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"log"
	"os"

	"github.com/vmware/govmomi/simulator"
)

func main() {
	vms := flag.Int("vms", 2, "VMs of each host and pool")
	flag.Parse()
	log.SetOutput(io.Discard)

	model := simulator.VPX()
	model.Machine = *vms
	if err := model.Create(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	model.Service.TLS = new(tls.Config)
	server := model.Service.NewServer()
	fmt.Println(server.URL.Host)

	_, _ = io.Copy(io.Discard, os.Stdin)
	server.Close()
	model.Remove()
}
