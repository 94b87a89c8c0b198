// As Go's own library serves.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
)

func main() {
	http.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(w, r.Body)
	})
	http.HandleFunc("/small", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "no", http.StatusRequestEntityTooLarge)
	})
	http.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "one")
		w.(http.Flusher).Flush()
		fmt.Fprintln(w, "two")
	})
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Target", url.QueryEscape(r.RequestURI))
		fmt.Fprintln(w, "hello")
	})
	for _, port := range os.Args[1:] {
		listener, err := net.Listen("tcp", ":"+port)
		if err != nil {
			panic(err)
		}
		go func() { panic(http.Serve(listener, nil)) }()
	}
	fmt.Println("listening")
	select {}
}
