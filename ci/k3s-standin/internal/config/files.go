package config

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"go.yaml.in/yaml/v3"
)

// setting is one key of the configuration files with the values that remain
// after merging.
type setting struct {
	key    string
	values []string
}

// readFiles merges a configuration file and the *.yaml files of its drop-in
// directory in K3s's way: files in alphabetical order, the last one wins, and
// `key+` appends to what came before. A missing file is an empty one.
func readFiles(path string) ([]setting, error) {
	files := []string{path}
	entries, err := os.ReadDir(path + ".d")
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	for _, entry := range entries {
		if ext := filepath.Ext(entry.Name()); !entry.IsDir() && (ext == ".yaml" || ext == ".yml") {
			files = append(files, filepath.Join(path+".d", entry.Name()))
		}
	}
	sort.Strings(files[1:])

	var merged []setting
	for _, file := range files {
		content, err := os.ReadFile(file)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		settings, err := parseFile(content)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		for _, s := range settings {
			merged = merge(merged, s)
		}
	}
	return merged, nil
}

func merge(merged []setting, next setting) []setting {
	key, appends := strings.CutSuffix(next.key, "+")
	for i := range merged {
		if merged[i].key != key {
			continue
		}
		if appends {
			merged[i].values = append(merged[i].values, next.values...)
		} else {
			merged[i].values = next.values
		}
		return merged
	}
	return append(merged, setting{key: key, values: next.values})
}

// parseFile keeps scalars as they are written, so that 0644 or 10.43.0.10 mean
// the same as on the command line.
func parseFile(content []byte) ([]setting, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(content, &document); err != nil {
		return nil, err
	}
	if len(document.Content) == 0 || document.Content[0].Tag == "!!null" {
		return nil, nil
	}
	root := document.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: expected a mapping of option names to values", root.Line)
	}
	var settings []setting
	for i := 0; i < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		values, err := scalars(value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key.Value, err)
		}
		settings = append(settings, setting{key: key.Value, values: values})
	}
	return settings, nil
}

func scalars(node *yaml.Node) ([]string, error) {
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	switch {
	case node.Tag == "!!null":
		return nil, nil
	case node.Kind == yaml.ScalarNode:
		return []string{node.Value}, nil
	case node.Kind == yaml.SequenceNode:
		var values []string
		for _, item := range node.Content {
			if item.Kind != yaml.ScalarNode {
				return nil, fmt.Errorf("line %d: expected a plain value", item.Line)
			}
			values = append(values, item.Value)
		}
		return values, nil
	}
	return nil, fmt.Errorf("line %d: expected a value or a list of values", node.Line)
}
