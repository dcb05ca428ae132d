package eice

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"

	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// maxProlog bounds the bytes of an answer that are searched for its first element.
const maxProlog = 4 << 10

// checkRoot makes an operation fail whose successful answer has another root element than the operation's. The SDK
// ignores the root: a proxy's page, or an empty body, would read as an answer of AWS that names no instance.
func checkRoot(stack *middleware.Stack) error {
	want := stack.ID() + "Response"
	check := func(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (middleware.DeserializeOutput, middleware.Metadata, error) {
		out, metadata, err := next.HandleDeserialize(ctx, in)
		response, ok := out.RawResponse.(*smithyhttp.Response)
		if err != nil || !ok || response.StatusCode >= http.StatusMultipleChoices {
			return out, metadata, err
		}
		var read bytes.Buffer
		got := root(io.TeeReader(io.LimitReader(response.Body, maxProlog), &read))
		if got != want {
			return out, metadata, &smithy.DeserializationError{Err: fmt.Errorf("the answer is %q, not %s", got, want)}
		}
		response.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(&read, response.Body), response.Body}
		return out, metadata, nil
	}
	return stack.Deserialize.Add(middleware.DeserializeMiddlewareFunc("checkRoot", check), middleware.After)
}

// root returns the name of a document's first element, or "" for a document without elements.
func root(document io.Reader) string {
	for d := xml.NewDecoder(document); ; {
		token, err := d.Token()
		if err != nil {
			return ""
		}
		if first, ok := token.(xml.StartElement); ok {
			return first.Name.Local
		}
	}
}
