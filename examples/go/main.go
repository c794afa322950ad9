// A box through its life, with the client that is generated for Go.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"

	"greeter/boxlite"
)

const greet = "echo What is your name?; until [ -e /tmp/name ]; do sleep 0.1; done; " +
	"read -r name < /tmp/name; echo Hello, $name."

func main() {
	url := os.Getenv("BOXLITE_REST_URL")
	if url == "" {
		url = "http://127.0.0.1:8200"
	}
	client, err := boxlite.NewClientWithResponses(url, boxlite.WithRequestEditorFn(authenticate))
	if err == nil {
		err = live(context.Background(), client)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func authenticate(_ context.Context, request *http.Request) error {
	if key := os.Getenv("BOXLITE_API_KEY"); key != "" {
		request.Header.Set("Authorization", "Bearer "+key)
	}
	return nil
}

func live(ctx context.Context, client *boxlite.ClientWithResponses) error {
	wanted := boxlite.CreateBoxRequest{Name: to("greeter-in-go"), Image: to("alpine:latest"), Start: to(true)}
	made, err := client.CreateBoxWithResponse(ctx, nil, wanted)
	if err != nil {
		return err
	}
	if made.JSONDefault != nil {
		return fmt.Errorf("%s", made.JSONDefault.Error.Message)
	}
	box := made.JSON201.BoxId
	defer client.RemoveBox(ctx, box, &boxlite.RemoveBoxParams{Force: to(true)})

	command := boxlite.StartExecutionRequest{Command: "sh", Args: &[]string{"-c", greet}}
	started, err := client.StartExecutionWithResponse(ctx, box, nil, command)
	if err != nil {
		return err
	}
	stream, err := client.StreamExecutionOutput(ctx, box, started.JSON201.ExecutionId, nil)
	if err != nil {
		return err
	}
	defer stream.Body.Close()
	err = events(stream.Body, func(event string, data []byte) error {
		switch event {
		case "stdout":
			var output struct{ Data []byte }
			if err := json.Unmarshal(data, &output); err != nil {
				return err
			}
			fmt.Print(string(output.Data))
			if strings.HasSuffix(string(output.Data), "?\n") {
				name, content := &boxlite.WriteFileParams{Path: "/tmp/name"}, strings.NewReader("Ada\n")
				_, err := client.WriteFileWithBody(ctx, box, name, "application/octet-stream", content)
				return err
			}
		case "exit":
			var end struct {
				ExitCode int `json:"exit_code"`
			}
			if err := json.Unmarshal(data, &end); err != nil {
				return err
			}
			fmt.Println("exit code:", end.ExitCode)
		}
		return nil
	})
	if err != nil {
		return err
	}

	file, err := client.ReadFileWithResponse(ctx, box, &boxlite.ReadFileParams{Path: "/tmp/name"})
	if err != nil {
		return err
	}
	fmt.Printf("file: %s", file.Body)

	again, err := client.CreateBoxWithResponse(ctx, nil, wanted)
	if err != nil {
		return err
	}
	fmt.Println("error:", again.JSONDefault.Error.Code)
	return nil
}

// events hands over the events of a stream, each with its data, as they come.
func events(stream io.Reader, on func(event string, data []byte) error) error {
	event := ""
	lines := bufio.NewScanner(stream)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ": ")
		switch field {
		case "event":
			event = value
		case "data":
			if err := on(event, []byte(value)); err != nil {
				return err
			}
		}
	}
	return lines.Err()
}

func to[T any](value T) *T { return &value }
