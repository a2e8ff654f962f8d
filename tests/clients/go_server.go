// A server of Go's net/http that says what it saw: its port on the first line, then a JSON object for each request (README.md).
package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
)

type seen struct {
	Method   string              `json:"method"`
	Target   string              `json:"target"`
	Fields   map[string][]string `json:"fields"`
	Trailers map[string][]string `json:"trailers"`
	Size     int                 `json:"size"`
	Sha256   string              `json:"sha256"`
	Whole    bool                `json:"whole"`
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	var lock sync.Mutex
	out := json.NewEncoder(os.Stdout)
	answer := func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		r.Header.Set("Host", r.Host)
		lock.Lock()
		out.Encode(seen{r.Method, r.RequestURI, r.Header, r.Trailer, len(body), fmt.Sprintf("%x", sha256.Sum256(body)), err == nil})
		lock.Unlock()
		io.WriteString(w, "ok")
	}
	quiet := log.New(io.Discard, "", 0)
	log.Fatal((&http.Server{Handler: http.HandlerFunc(answer), ErrorLog: quiet}).Serve(listener))
}
