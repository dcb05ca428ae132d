package store

import (
	"encoding/json"
	"fmt"
	"maps"
)

// attributes scans attributesSQL.
type attributes struct{ of *Workspace }

// Scan is sql.Scanner's.
func (a attributes) Scan(src any) error {
	var b []byte
	switch src := src.(type) {
	case []byte:
		b = src
	case string:
		b = []byte(src)
	}
	if err := json.Unmarshal(b, &a.of.Attributes); err != nil {
		return fmt.Errorf("reading a workspace's row: %w", err)
	}
	return nil
}

// on returns the workspace with another instance_id.
func (w Workspace) on(instanceID string) Workspace {
	all := maps.Clone(w.Attributes)
	if all == nil {
		all = map[string]string{}
	}
	delete(all, "instance_id")
	if instanceID != "" {
		all["instance_id"] = instanceID
	}
	w.Attributes = all
	return w
}
