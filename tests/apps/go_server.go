// go_server HOST:PORT: /digest/TEXT, /total; goroutines, signals of the scheduler, garbage.
package main

import (
	"crypto/sha256"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

var (
	total   int64
	mu      sync.Mutex
	garbage [][]byte
)

func digest(w http.ResponseWriter, r *http.Request) {
	atomic.AddInt64(&total, 1)
	mu.Lock()
	garbage = append(garbage, make([]byte, 20000))
	if len(garbage) > 500 {
		garbage = append([][]byte{}, garbage[400:]...)
	}
	mu.Unlock()
	fmt.Fprintf(w, "%x", sha256.Sum256([]byte(strings.TrimPrefix(r.URL.Path, "/digest/"))))
}

// A loop without a call: only a signal takes it off its processor.
func spin() {
	for n := 0; ; n++ {
		if n%50000000 == 0 {
			time.Sleep(100 * time.Millisecond)
		}
	}
}

func main() {
	http.HandleFunc("/digest/", digest)
	http.HandleFunc("/total", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, atomic.LoadInt64(&total))
	})
	go spin()
	log.Fatal(http.ListenAndServe(os.Args[1], nil))
}
