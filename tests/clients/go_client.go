// The Go client: go_client BASE PARALLEL; reads requests and writes what came of them as README.md here says.
package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

func pattern(size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i % 251)
	}
	return b
}

// A body without a length that http.NewRequest could find out.
type stream struct{ r io.Reader }

func (s stream) Read(p []byte) (int, error) { return s.r.Read(p) }

func ask(client *http.Client, base string, words []string) (string, error) {
	kind, digits, _ := strings.Cut(words[3], ":")
	size, _ := strconv.Atoi(digits)
	var body io.Reader
	if kind == "length" {
		body = bytes.NewReader(pattern(size))
	} else if kind == "stream" {
		body = stream{bytes.NewReader(pattern(size))}
	}
	request, err := http.NewRequest(words[1], base+words[2], body)
	if err != nil {
		return "", err
	}
	for _, f := range words[5:] {
		name, value, _ := strings.Cut(f, ": ")
		request.Header.Set(name, value)
	}
	request.Close = strings.Contains(words[4], "close")
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	hash := sha256.New()
	n, err := io.Copy(hash, response.Body)
	if err != nil {
		return "", err
	}
	out := fmt.Sprintf("%d\t%d\t%x", response.StatusCode, n, hash.Sum(nil))
	for name, values := range response.Header {
		out += "\t" + strings.ToLower(name) + ": " + strings.Join(values, ", ")
	}
	return out, nil
}

func main() {
	parallel, _ := strconv.Atoi(os.Args[2])
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		MaxConnsPerHost: parallel, MaxIdleConnsPerHost: parallel, ExpectContinueTimeout: 30 * time.Second}}
	input := bufio.NewScanner(os.Stdin)
	var input_lock, output_lock sync.Mutex
	var workers sync.WaitGroup
	for i := 0; i < parallel; i++ {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for {
				input_lock.Lock()
				more := input.Scan()
				line := input.Text()
				input_lock.Unlock()
				if !more {
					return
				}
				words := strings.Split(line, "\t")
				out, err := ask(client, os.Args[1], words)
				if err != nil {
					out = "error\t" + strings.ReplaceAll(err.Error(), "\n", " ")
				}
				output_lock.Lock()
				fmt.Println(words[0] + "\t" + out)
				output_lock.Unlock()
			}
		}()
	}
	workers.Wait()
}
