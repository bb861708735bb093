// Command interop checks Sallyport audit logs with golang.org/x/mod/sumdb (note, tlog), which shares no code with
// the Python package: if both agree on every byte, a third party's verifier will too. See audit/FORMAT.md.
package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const usage = `usage:
  check  STATE_DIR             every head, root, inclusion (sampled) and consistency proof of a log
  proof  KEY_FILE PROOF LINE   an inclusion proof (c2sp.org/tlog-proof) and the line it is for
  extend KEY_FILE OLD PROOF    a consistency proof, from an older head
  vectors DIR                  write the test vectors`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "interop:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "check":
		return check(args[1])
	case len(args) == 4 && args[0] == "proof":
		return proof(args[1], args[2], args[3])
	case len(args) == 4 && args[0] == "extend":
		return extend(args[1], args[2], args[3])
	case len(args) == 2 && args[0] == "vectors":
		return vectors(args[1])
	}
	return errors.New(usage)
}

// memory holds the hashes of a tree in tlog's storage order.
type memory []tlog.Hash

func (m memory) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	found := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		if index >= int64(len(m)) {
			return nil, fmt.Errorf("hash %d is not stored", index)
		}
		found[i] = m[index]
	}
	return found, nil
}

func (m *memory) add(seq int64, line []byte) error {
	hashes, err := tlog.StoredHashes(seq, line, *m)
	*m = append(*m, hashes...)
	return err
}

type head struct {
	origin string
	tree   tlog.Tree
}

func openHead(text []byte, verifier note.Verifier) (head, error) {
	opened, err := note.Open(text, note.VerifierList(verifier))
	if err != nil {
		return head{}, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || len(opened.Sigs) != 1 || len(opened.UnverifiedSigs) != 0 {
		return head{}, fmt.Errorf("not a head: %q", opened.Text)
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return head{}, err
	}
	root, err := tlog.ParseHash(lines[2])
	if err != nil {
		return head{}, err
	}
	if lines[0] != verifier.Name() {
		return head{}, fmt.Errorf("origin %q is not the key's name", lines[0])
	}
	return head{lines[0], tlog.Tree{N: size, Hash: root}}, nil
}

func readKey(path string) (note.Verifier, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return note.NewVerifier(strings.TrimSuffix(string(text), "\n"))
}

func readLines(path string, each func([]byte) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	reader := bufio.NewReaderSize(file, 1<<20)
	for {
		line, err := reader.ReadBytes('\n')
		if err == io.EOF && len(line) == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s ends in the middle of a line", path)
		}
		if err := each(line[:len(line)-1]); err != nil {
			return err
		}
	}
}

func check(stateDir string) error {
	root := filepath.Join(stateDir, "audit")
	verifier, err := readKey(filepath.Join(root, "key.pub"))
	if err != nil {
		return err
	}
	names, err := filepath.Glob(filepath.Join(root, "log", "*.jsonl"))
	if err != nil || len(names) == 0 {
		return fmt.Errorf("no segments in %s: %v", root, err)
	}
	sort.Strings(names)
	var stored memory
	var heads []head
	var entries int64
	for _, name := range names {
		if first := fmt.Sprintf("%020d.jsonl", entries); filepath.Base(name) != first {
			return fmt.Errorf("%s should be %s", name, first)
		}
		err := readLines(name, func(line []byte) error {
			var entry struct{ Seq *int64 }
			if err := json.Unmarshal(line, &entry); err != nil {
				return fmt.Errorf("line %d: %w", entries, err)
			}
			if entry.Seq == nil || *entry.Seq != entries {
				return fmt.Errorf("line %d has another sequence number", entries)
			}
			err := stored.add(entries, line)
			entries++
			return err
		})
		if err != nil {
			return err
		}
		found, err := readHeads(strings.TrimSuffix(name, ".jsonl")+".heads", verifier)
		if err != nil {
			return err
		}
		heads = append(heads, found...)
	}
	inclusions := 0
	for i, h := range heads {
		hash, err := tlog.TreeHash(h.tree.N, stored)
		if err != nil {
			return fmt.Errorf("head %d (%d entries): %w", i, h.tree.N, err)
		}
		if hash != h.tree.Hash {
			return fmt.Errorf("head %d (%d entries) has another root than the lines", i, h.tree.N)
		}
		if i > 0 {
			before := heads[i-1].tree
			if before.N >= h.tree.N {
				return fmt.Errorf("head %d does not grow", i)
			}
			extension, err := tlog.ProveTree(h.tree.N, before.N, stored)
			if err != nil {
				return err
			}
			if err := tlog.CheckTree(extension, h.tree.N, h.tree.Hash, before.N, before.Hash); err != nil {
				return fmt.Errorf("head %d does not extend the one before: %w", i, err)
			}
		}
		for _, seq := range []int64{0, h.tree.N / 2, h.tree.N - 1} {
			included, err := tlog.ProveRecord(h.tree.N, seq, stored)
			if err != nil {
				return err
			}
			leaf := stored[tlog.StoredHashIndex(0, seq)]
			if err := tlog.CheckRecord(included, h.tree.N, h.tree.Hash, seq, leaf); err != nil {
				return fmt.Errorf("entry %d under head %d: %w", seq, i, err)
			}
			inclusions++
		}
	}
	if len(heads) == 0 || heads[len(heads)-1].tree.N != entries {
		return errors.New("the last head does not cover the last line")
	}
	fmt.Printf("%s: %d entries, %d heads, %d consistency and %d inclusion proofs: good\n",
		verifier.Name(), entries, len(heads), len(heads)-1, inclusions)
	return nil
}

func readHeads(path string, verifier note.Verifier) ([]head, error) {
	var heads []head
	var text bytes.Buffer
	number := 0
	err := readLines(path, func(line []byte) error {
		text.Write(line)
		text.WriteByte('\n')
		if number++; number%5 != 0 {
			return nil
		}
		opened, err := openHead(text.Bytes(), verifier)
		if err != nil {
			return fmt.Errorf("%s, head %d: %w", path, number/5, err)
		}
		heads = append(heads, opened)
		text.Reset()
		return nil
	})
	if err == nil && text.Len() != 0 {
		err = fmt.Errorf("%s ends in the middle of a head", path)
	}
	return heads, err
}

// split cuts a proof text into its first lines, its hashes and its head.
func split(text []byte) ([]string, []byte, error) {
	before, after, found := bytes.Cut(text, []byte("\n\n"))
	if !found {
		return nil, nil, errors.New("the proof has no head")
	}
	return strings.Split(string(before), "\n"), after, nil
}

func parseHashes(lines []string) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(lines))
	for i, line := range lines {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return nil, err
		}
		hashes[i] = hash
	}
	return hashes, nil
}

func proof(keyFile, proofFile, lineFile string) error {
	verifier, err := readKey(keyFile)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(proofFile)
	if err != nil {
		return err
	}
	line, err := os.ReadFile(lineFile)
	if err != nil {
		return err
	}
	lines, headText, err := split(text)
	if err != nil {
		return err
	}
	if len(lines) < 2 || lines[0] != "c2sp.org/tlog-proof@v1" || !strings.HasPrefix(lines[1], "index ") {
		return errors.New("not a tlog proof")
	}
	seq, err := strconv.ParseInt(strings.TrimPrefix(lines[1], "index "), 10, 64)
	if err != nil {
		return err
	}
	hashes, err := parseHashes(lines[2:])
	if err != nil {
		return err
	}
	h, err := openHead(headText, verifier)
	if err != nil {
		return err
	}
	if err := tlog.CheckRecord(hashes, h.tree.N, h.tree.Hash, seq, tlog.RecordHash(line)); err != nil {
		return err
	}
	fmt.Printf("entry %d is in the log of %d entries: good\n", seq, h.tree.N)
	return nil
}

func extend(keyFile, oldFile, proofFile string) error {
	verifier, err := readKey(keyFile)
	if err != nil {
		return err
	}
	oldText, err := os.ReadFile(oldFile)
	if err != nil {
		return err
	}
	old, err := openHead(oldText, verifier)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(proofFile)
	if err != nil {
		return err
	}
	lines, headText, err := split(text)
	if err != nil {
		return err
	}
	if lines[0] != fmt.Sprintf("old %d", old.tree.N) {
		return fmt.Errorf("the proof begins with %q, the head has %d entries", lines[0], old.tree.N)
	}
	hashes, err := parseHashes(lines[1:])
	if err != nil {
		return err
	}
	h, err := openHead(headText, verifier)
	if err != nil {
		return err
	}
	if err := tlog.CheckTree(hashes, h.tree.N, h.tree.Hash, old.tree.N, old.tree.Hash); err != nil {
		return err
	}
	fmt.Printf("the log of %d entries extends that of %d: good\n", h.tree.N, old.tree.N)
	return nil
}

// fixed makes keys the same in every run: vectors must be reproducible.
type fixed byte

func (f fixed) Read(into []byte) (int, error) {
	seed := sha256.Sum256([]byte{byte(f)})
	return copy(into, seed[:]), nil
}

type keyVector struct {
	Private string `json:"private"`
	Public  string `json:"public"`
}

type headVector struct {
	Key  int    `json:"key"`
	Size int64  `json:"size"`
	Root string `json:"root"`
	Note string `json:"note"`
}

type inclusionVector struct {
	Index int64    `json:"index"`
	Size  int64    `json:"size"`
	Proof []string `json:"proof"`
}

type consistencyVector struct {
	Old   int64    `json:"old"`
	Size  int64    `json:"size"`
	Proof []string `json:"proof"`
}

const largest = 34

func vectors(folder string) error {
	var keys []keyVector
	var signers []note.Signer
	for i, name := range []string{"example.com/log", "sallyport/höst/00c0ffee", "x"} {
		private, public, err := note.GenerateKey(fixed(i), name)
		if err != nil {
			return err
		}
		signer, err := note.NewSigner(private)
		if err != nil {
			return err
		}
		keys, signers = append(keys, keyVector{private, public}), append(signers, signer)
	}
	var stored memory
	var roots []string
	var heads []headVector
	var inclusions []inclusionVector
	var consistencies []consistencyVector
	for size := int64(1); size <= largest; size++ {
		if err := stored.add(size-1, []byte(fmt.Sprintf(`{"seq":%d}`, size-1))); err != nil {
			return err
		}
		root, err := tlog.TreeHash(size, stored)
		if err != nil {
			return err
		}
		roots = append(roots, root.String())
		key := int(size) % len(signers)
		text := fmt.Sprintf("%s\n%d\n%s\n", signers[key].Name(), size, root)
		signed, err := note.Sign(&note.Note{Text: text}, signers[key])
		if err != nil {
			return err
		}
		heads = append(heads, headVector{key, size, root.String(), string(signed)})
		for index := int64(0); index < size; index++ {
			included, err := tlog.ProveRecord(size, index, stored)
			if err != nil {
				return err
			}
			inclusions = append(inclusions, inclusionVector{index, size, texts(included)})
			extension, err := tlog.ProveTree(size, index+1, stored)
			if err != nil {
				return err
			}
			consistencies = append(consistencies, consistencyVector{index + 1, size, texts(extension)})
		}
	}
	for name, value := range map[string]any{
		"keys.json": keys, "roots.json": roots, "heads.json": heads,
		"inclusion.json": inclusions, "consistency.json": consistencies,
	} {
		data, err := json.Marshal(value)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(folder, name), append(data, '\n'), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func texts(hashes []tlog.Hash) []string {
	found := make([]string, len(hashes))
	for i, hash := range hashes {
		found[i] = base64.StdEncoding.EncodeToString(hash[:])
	}
	return found
}
