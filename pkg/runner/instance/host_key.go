package instance

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
)

const (
	// hostKeyBytes bounds the text of an instance's host keys: a paste of ssh-keyscan has some 1,500 bytes.
	hostKeyBytes = 16 << 10
	putHostKey   = `put the public key there, as /etc/ssh/ssh_host_ed25519_key.pub on the instance has it ("ssh-ed25519 AAAA...")`
)

// hostKeyTypes are the keys that an sshd can show and ssh accepts by default.
var hostKeyTypes = []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoRSA}

// hostKeyLines reads the public keys of an instance's sshd and returns each as "type base64". A line is
//
//	[host] type base64 [comment]
//
// as in a .pub file, in known_hosts (sshd(8)) and in the output of ssh-keyscan; an empty line; a comment, which begins with
// "#"; or one of the two that are around the keys in the console of an EC2 instance. A host is the instance's id, or an
// address or localhost, the same in all lines: a known_hosts of several hosts has keys of others. The key of a line
//
//	@revoked [host] type base64 [comment]
//
// is not among those that are returned, whatever its host. Anything else, and a text without a key, is an error, which a
// person may read.
func hostKeyLines(text, instance string) ([]string, error) {
	if len(text) > hostKeyBytes {
		return nil, fmt.Errorf("it has more than %d bytes; %s", hostKeyBytes, putHostKey)
	}
	var keys, revoked []string
	var scanned string // the host of all lines that name one but the instance
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSpace(line)
		switch {
		case line == "", strings.HasPrefix(line, "#"),
			line == "-----BEGIN SSH HOST KEY KEYS-----", line == "-----END SSH HOST KEY KEYS-----":
			continue
		}
		if bad, ok := cutMarker(line, "@revoked"); ok {
			_, key, err := hostKeyLine(bad, "", true)
			if err != nil {
				return nil, fmt.Errorf("line %d %w", number, err)
			}
			revoked = append(revoked, key)
			continue
		}
		host, key, err := hostKeyLine(line, instance, false)
		if err == nil && host != "" && host != instance {
			if scanned != "" && host != scanned {
				err = errors.New("names another host than a line before it; leave the keys of other hosts out")
			}
			scanned = host
		}
		if err != nil {
			return nil, fmt.Errorf("line %d %w", number, err)
		}
		if !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	keys = slices.DeleteFunc(keys, func(key string) bool { return slices.Contains(revoked, key) })
	if len(keys) == 0 {
		return nil, errors.New("it holds no key that is not revoked; " + putHostKey)
	}
	return keys, nil
}

// cutMarker returns the line without its marker, a word of its own.
func cutMarker(line, marker string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(line, marker)
	trimmed := strings.TrimLeft(rest, " \t")
	return trimmed, ok && len(trimmed) < len(rest)
}

// hostKeyLine reads one line, in which the host may be any word or has to be one of the instance's. Its errors go on after
// "line 1".
func hostKeyLine(line, instance string, anyHost bool) (host, key string, err error) {
	fields := strings.Fields(line)
	switch {
	case strings.HasPrefix(line, "@"):
		return "", "", errors.New("has a marker that is not supported, as @cert-authority; " + putHostKey)
	case strings.Contains(line, "SHA256:"), strings.Contains(line, "MD5:"), strings.Contains(line, "SSH HOST KEY FINGERPRINTS"):
		return "", "", errors.New("is a fingerprint, which no key can be made of; " + putHostKey)
	}
	if !slices.Contains(hostKeyTypes, fields[0]) {
		host, fields = fields[0], fields[1:]
		if len(fields) == 0 || !slices.Contains(hostKeyTypes, fields[0]) {
			return "", "", errors.New("is no public key; " + putHostKey)
		}
		if !anyHost && !namesOneHost(host, instance) {
			return "", "", errors.New("does not begin with the instance's id, an address or a key; remove what stands before the key")
		}
	}
	if len(fields) < 2 {
		return "", "", errors.New("has a key's type and no key; " + putHostKey)
	}
	b, err := base64.StdEncoding.Strict().DecodeString(fields[1])
	if err != nil {
		return "", "", errors.New("has a key that is not in base64, or not whole")
	}
	public, err := ssh.ParsePublicKey(b)
	if err != nil || public.Type() != fields[0] {
		return "", "", errors.New("has a key that is not whole, or of another type than it says")
	}
	return host, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public))), nil
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
