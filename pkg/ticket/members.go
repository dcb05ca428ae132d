package ticket

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"
)

var errNotObject = errors.New("not a JSON object")

// members returns the members of a JSON object. Names that are equal, or that differ only
// in case, are an error: parsers differ in whether the first or the last of such members
// counts, and whether case does (RFC 8259, section 4). No error quotes a value.
func members(object []byte) (map[string]json.RawMessage, error) {
	if !json.Valid(object) {
		return nil, errNotObject
	}
	decoder := json.NewDecoder(bytes.NewReader(object))
	if first, err := decoder.Token(); err != nil || first != json.Delim('{') {
		return nil, errNotObject
	}
	found, folds := map[string]json.RawMessage{}, map[string]bool{}
	for decoder.More() {
		token, err := decoder.Token()
		name, ok := token.(string)
		var value json.RawMessage
		if err != nil || !ok || decoder.Decode(&value) != nil {
			return nil, errNotObject
		}
		folded := strings.Map(fold, name)
		if folds[folded] {
			return nil, fmt.Errorf("the member %s is there twice, in one case or two", brief(name))
		}
		found[name], folds[folded] = value, true
	}
	return found, nil
}

// fold returns the smallest rune that differs from r only in case, by the folding of
// encoding/json and strings.EqualFold.
func fold(r rune) rune {
	least := r
	for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
		least = min(least, next)
	}
	return least
}
