package docs

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
)

// page is a Markdown file, as far as the checks need it.
type page struct {
	path, text string
	prose      string   // without code
	spans      []string // `code` in the text
	blocks     []block
	rows       []string        // of tables
	anchors    map[string]bool // as GitHub makes them of headings
}

// block is fenced code, or code by indentation, which has no language.
type block struct {
	language, file, text string
	indented             bool
}

var (
	fence   = regexp.MustCompile("^ *```(\\w*)(.*)$")
	span    = regexp.MustCompile("`([^`]+)`")
	heading = regexp.MustCompile(`^#{1,6} +(.*)$`)
	fileOf  = regexp.MustCompile(`\bfile=(\S+)`)
)

func parsePage(path, text string) *page {
	p := &page{path: path, text: text, anchors: map[string]bool{}}
	var (
		open    *block
		prose   strings.Builder
		isBlank = true // the line before
	)
	for line := range strings.Lines(text) {
		bare := strings.TrimRight(line, "\n")
		m := fence.FindStringSubmatch(bare)
		switch {
		case open != nil && !open.indented && m != nil:
			open = nil
		case open != nil && !open.indented:
			open.text += line
		case m != nil:
			p.blocks = append(p.blocks, block{language: m[1]})
			open = &p.blocks[len(p.blocks)-1]
			if f := fileOf.FindStringSubmatch(m[2]); f != nil {
				open.file = f[1]
			}
		case strings.HasPrefix(bare, "    ") && (open != nil || isBlank):
			if open == nil {
				p.blocks = append(p.blocks, block{indented: true})
				open = &p.blocks[len(p.blocks)-1]
			}
			open.text += line
		default:
			open = nil
			prose.WriteString(line)
			if h := heading.FindStringSubmatch(bare); h != nil {
				p.addAnchor(h[1])
			}
			if strings.HasPrefix(bare, "|") {
				p.rows = append(p.rows, bare)
			}
		}
		isBlank = strings.TrimSpace(bare) == ""
	}
	for _, m := range span.FindAllStringSubmatch(prose.String(), -1) {
		p.spans = append(p.spans, strings.ReplaceAll(m[1], "\n", " "))
	}
	p.prose = span.ReplaceAllString(prose.String(), "")
	return p
}

// addAnchor makes what GitHub makes: lower case, no punctuation but - and _, blanks as -, and a number if there is one.
func (p *page) addAnchor(title string) {
	anchor := strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-', r == '_', unicode.IsLetter(r), unicode.IsDigit(r):
			return unicode.ToLower(r)
		}
		return -1
	}, title)
	unique := anchor
	for n := 1; p.anchors[unique]; n++ {
		unique = fmt.Sprintf("%s-%d", anchor, n)
	}
	p.anchors[unique] = true
}

// codes are the words in code of the page's tables.
func (p *page) codes() (codes []string) {
	for _, row := range p.rows {
		for _, m := range span.FindAllStringSubmatch(row, -1) {
			codes = append(codes, m[1])
		}
	}
	return codes
}

// section is the text below a heading, up to the next of its level.
func (p *page) section(title string) string {
	_, rest, found := strings.Cut("\n"+p.text, "\n"+title+"\n")
	if !found {
		return ""
	}
	level, _, _ := strings.Cut(title, " ")
	text, _, _ := strings.Cut(rest, "\n"+level+" ")
	return text
}

// table is a section's table: the second cell of a row, by each word in code of its first.
func (p *page) table(title string) map[string]string {
	table := map[string]string{}
	_, rows, _ := strings.Cut(p.section(title), "\n|---") // below the head
	for _, row := range regexp.MustCompile(`(?m)^\| ([^|\n]*) \|([^|\n]*)`).FindAllStringSubmatch(rows, -1) {
		for _, m := range span.FindAllStringSubmatch(row[1], -1) {
			table[m[1]] = strings.TrimSpace(row[2])
		}
	}
	return table
}
