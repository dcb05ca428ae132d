package instance

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
)

const (
	// hostKeyBytes bounds the text of an instance's host keys: a paste of ssh-keyscan has some 1,500 bytes.
	hostKeyBytes = 16 << 10
	putHostKey   = `put the public key there, as /etc/ssh/ssh_host_ed25519_key.pub on the instance has it ("ssh-ed25519 AAAA..."), or its fingerprint ("SHA256:...")`
)

// hostKeyTypes are the keys that an sshd can show and ssh accepts by default, in the order in which ssh prefers them.
var hostKeyTypes = []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoRSA}

// hostKeys are what is known of the keys of an instance's sshd. An entry is a public key ("type base64") or a fingerprint:
// "SHA256:base64", and after a blank the key's type as ssh-keygen prints it, if that is known.
type hostKeys []string

func (k hostKeys) String() string { return strings.Join(k, "\n") }

// parsedHostKeys returns the keys whose String is s.
func parsedHostKeys(s string) hostKeys {
	if s == "" {
		return nil
	}
	return strings.Split(s, "\n")
}

// have reports whether a key is among the known ones.
func (k hostKeys) have(key ssh.PublicKey) bool {
	hash, line := ssh.FingerprintSHA256(key), lineOf(key)
	return slices.ContainsFunc(k, func(entry string) bool {
		known, _, _ := strings.Cut(entry, " ")
		return known == hash || entry == line
	})
}

func lineOf(key ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// algorithms returns ssh's HostKeyAlgorithms (ssh_config(5)): those of the known keys first, so that a server with several
// keys shows a known one, and none of the types to leave out.
func (k hostKeys) algorithms(without []string) string {
	types := slices.Clone(hostKeyTypes)
	slices.SortStableFunc(types, func(a, b string) int { return cmp.Compare(k.rank(a), k.rank(b)) })
	var names []string
	for _, t := range types {
		switch {
		case slices.Contains(without, t):
		case t == ssh.KeyAlgoRSA: // "ssh-rsa" is the key's type, and as a signature is by SHA-1
			names = append(names, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
		default:
			names = append(names, t)
		}
	}
	return strings.Join(names, ",")
}

// rank is 0 for the type of a known key, else 1.
func (k hostKeys) rank(keyType string) int {
	for _, entry := range k {
		known, short, _ := strings.Cut(entry, " ")
		if known == keyType || slices.Contains(shortTypes[short], keyType) && strings.HasPrefix(known, "SHA256:") {
			return 0
		}
	}
	return 1
}

// mayBeOther reports whether a fingerprint of a key of unknown type is among the known ones: a server that has shown another
// key may have that one too.
func (k hostKeys) mayBeOther() bool {
	return slices.ContainsFunc(k, func(entry string) bool { return strings.HasPrefix(entry, "SHA256:") && !strings.Contains(entry, " ") })
}

// shortTypes are the key types of a word of ssh-keygen. No sshd of today has a key for DSA, which ssh would not take either.
var shortTypes = map[string][]string{
	"ED25519": {ssh.KeyAlgoED25519},
	"ECDSA":   {ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521},
	"RSA":     {ssh.KeyAlgoRSA},
	"DSA":     {},
}

// consolePrefix is what an instance's console has before a line of cloud-init or of Amazon Linux.
var consolePrefix = regexp.MustCompile(`^(\[ *\d{1,9}\.\d{1,9}\] )?((<\d{1,3}>)?[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d ([\w.-]{1,64} )?)?(ec2|cloud-init)(\[\d{1,9}\])?:( |$)`)

// eachKey matches where a key or a fingerprint begins.
var eachKey = regexp.MustCompile(`(ssh-rsa|ssh-ed25519|ecdsa-sha2-nistp\d+)\s+AAAA|SHA256:`)

// aroundKeys are the lines around the keys and fingerprints in the console of an EC2 instance.
var aroundKeys = []string{
	"-----BEGIN SSH HOST KEY KEYS-----", "-----END SSH HOST KEY KEYS-----",
	"-----BEGIN SSH HOST KEY FINGERPRINTS-----", "-----END SSH HOST KEY FINGERPRINTS-----",
}

// readHostKeys reads what a text tells of the keys of an instance's sshd. A line is
//
//	[host] type base64 [comment]
//
// as in a .pub file, in known_hosts (sshd(8)) and in the output of ssh-keyscan;
//
//	[bits] SHA256:base64 [comment] [(TYPE)]
//
// as ssh-keygen -l prints; an empty line; a comment, which begins with "#"; or one of those that are around the keys and
// fingerprints in the console of an EC2 instance. A host is the instance's id, or an address or localhost, the same in all
// lines: a known_hosts of several hosts has keys of others. The key of a line
//
//	@revoked [host] type base64 [comment]
//
// is not among those that are returned, whatever its host. Anything else, and a text without a key, is an error, which a
// person may read.
func readHostKeys(text, instance string) (hostKeys, error) {
	if len(text) > hostKeyBytes {
		return nil, fmt.Errorf("it has more than %d bytes; %s", hostKeyBytes, putHostKey)
	}
	var keys hostKeys
	var revoked []ssh.PublicKey
	var scanned string // the host of all lines that name one but the instance
	number := 0
	for line := range strings.Lines(strings.TrimPrefix(text, "\ufeff")) {
		number++
		line = strings.TrimSpace(line)
		line = strings.TrimPrefix(line, consolePrefix.FindString(line))
		if line == "" || strings.HasPrefix(line, "#") || slices.Contains(aroundKeys, line) {
			continue
		}
		if hasMany(line) {
			return nil, fmt.Errorf("line %d has more than one key; write each on a line of its own", number)
		}
		if bad, ok := cutMarker(line, "@revoked"); ok {
			_, key, err := hostKeyLine(bad, "", true)
			if err != nil {
				return nil, fmt.Errorf("line %d %w", number, err)
			}
			revoked = append(revoked, key)
			continue
		}
		entry, ok, err := fingerprintLine(line)
		if !ok && err == nil {
			var host string
			var key ssh.PublicKey
			if host, key, err = hostKeyLine(line, instance, false); err == nil {
				entry = lineOf(key)
			}
			if err == nil && host != "" && host != instance {
				if scanned != "" && host != scanned {
					err = errors.New("names another host than a line before it; leave the keys of other hosts out")
				}
				scanned = host
			}
		}
		if err != nil {
			return nil, fmt.Errorf("line %d %w", number, err)
		}
		if entry != "" && !slices.Contains(keys, entry) {
			keys = append(keys, entry)
		}
	}
	for _, key := range revoked {
		keys = slices.DeleteFunc(keys, func(entry string) bool { return hostKeys{entry}.have(key) })
	}
	switch {
	case len(keys) == 0 && len(revoked) == 0:
		return nil, errors.New("it holds no key; " + putHostKey)
	case len(keys) == 0:
		return nil, errors.New("it holds no key that is not revoked; " + putHostKey)
	}
	return keys, nil
}

// hasMany reports whether a line has several keys, which a table or a shell has joined. A key's own fingerprint behind it is
// a comment.
func hasMany(line string) bool {
	if _, key, err := hostKeyLine(line, "", true); err == nil {
		line = strings.ReplaceAll(line, ssh.FingerprintSHA256(key), "")
	}
	return len(eachKey.FindAllStringIndex(line, 2)) > 1
}

// cutMarker returns the line without its marker, a word of its own.
func cutMarker(line, marker string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(line, marker)
	trimmed := strings.TrimLeft(rest, " \t")
	return trimmed, ok && len(trimmed) < len(rest)
}

var (
	fingerprintForm = regexp.MustCompile(`^(?:\d{2,5}\s+)?SHA256:(\S+)(?:\s.*?)??(?:\s+\(([A-Z0-9-]+)\))?$`)
	// otherFingerprint matches a fingerprint by another hash, MD5 without its name too.
	otherFingerprint = regexp.MustCompile(`^(?:\d{2,5}\s+)?(MD5:|SHA1:|SHA384:|SHA512:|(?:[0-9a-fA-F]{2}:){15}[0-9a-fA-F]{2}(?:\s|$))`)
)

// fingerprintLine reads a line as ssh-keygen -l prints it. ok reports whether it is one; the entry is empty for a key that no
// sshd shows. Its errors go on after "line 1".
func fingerprintLine(line string) (entry string, ok bool, err error) {
	if m := otherFingerprint.FindStringSubmatch(line); m != nil {
		name := "MD5"
		if known, found := strings.CutSuffix(m[1], ":"); found && strings.HasPrefix(known, "SHA") {
			name = known
		}
		return "", false, fmt.Errorf("is a fingerprint by %s, and only SHA256 is taken; run `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the instance", name)
	}
	m := fingerprintForm.FindStringSubmatch(line)
	if m == nil {
		return "", false, nil
	}
	if b, err := base64.RawStdEncoding.Strict().DecodeString(strings.TrimRight(m[1], "=")); err != nil || len(b) != 32 {
		return "", false, errors.New(`has a fingerprint that is not whole, or something right behind it; 43 characters follow "SHA256:", and then a blank or nothing`)
	}
	entry = "SHA256:" + strings.TrimRight(m[1], "=")
	if m[2] == "" {
		return entry, true, nil
	}
	types, known := shortTypes[m[2]]
	switch {
	case !known:
		return "", false, errors.New("is the fingerprint of a key that no sshd shows; " + putHostKey)
	case len(types) == 0:
		return "", true, nil
	}
	return entry + " " + m[2], true, nil
}

// hostKeyLine reads one line, in which the host may be any word or has to be one of the instance's. Its errors go on after
// "line 1".
func hostKeyLine(line, instance string, anyHost bool) (host string, key ssh.PublicKey, err error) {
	fields := strings.Fields(line)
	if strings.HasPrefix(line, "@") {
		return "", nil, errors.New("has a marker that is not supported, as @cert-authority; " + putHostKey)
	}
	if !slices.Contains(hostKeyTypes, fields[0]) {
		host, fields = fields[0], fields[1:]
		if len(fields) == 0 || !slices.Contains(hostKeyTypes, fields[0]) {
			return "", nil, errors.New("is neither a public key nor a fingerprint; " + putHostKey)
		}
		if !anyHost && !namesOneHost(host, instance) {
			return "", nil, errors.New("does not begin with the instance's id, an address or a key; remove what stands before the key")
		}
	}
	if len(fields) < 2 {
		return "", nil, errors.New("has a key's type and no key; " + putHostKey)
	}
	b, err := base64.StdEncoding.Strict().DecodeString(fields[1])
	if err != nil {
		return "", nil, errors.New("has a key that is not in base64, or not whole; " + putHostKey)
	}
	public, err := ssh.ParsePublicKey(b)
	if err != nil || public.Type() != fields[0] {
		return "", nil, errors.New("has a key that is not whole, or of another type than it says; " + putHostKey)
	}
	return host, public, nil
}

// namesOneHost reports whether the first word of a line is a host that can be told from an option or a marker ("revoked"),
// and is not told to be another instance. Whether an address is the instance's is for who wrote the row.
func namesOneHost(host, instance string) bool {
	if host == instance || host == "localhost" {
		return true
	}
	if inside, port, ok := strings.Cut(strings.TrimPrefix(host, "["), "]:"); ok && strings.Trim(port, "0123456789") == "" {
		host = inside // as ssh-keyscan -p prints
	}
	_, err := netip.ParseAddr(host)
	return err == nil
}
