package runner

import "errors"

const seeDocs = " See docs/infra/workspace-terminal.md."

// sentences say what to do, to whoever sits at the terminal, by the step of the
// way to an instance that failed, at the login or later. AWS's steps have their
// own.
var sentences = map[string]string{
	"instance_id":   "The workspace's instance id is malformed: correct it in the workspace's row.",
	"os_user":       "The OS user configured for this workspace is not a valid user name: correct os_user in the workspace's row.",
	"remote_target": "The workspace's remote_target is neither container nor host: correct it in the workspace's row.",
	"ssh":           "The gateway's own ssh failed or was ended: open the terminal again. The gateway's log has its last words.",
	"ssh_auth":      "The instance refused the gateway's key. Check the OS user (os_user in the workspace's row, TERMGW_EICE_OS_USER), and that the instance's image has ec2-instance-connect.",
	"ssh_hostkey":   "The instance's host key is not the one that is known for it. If the instance was made anew, correct host_key in the workspace's row, or delete the instance's line from termgw.host_keys. If not, find out who answers.",
	"ssh_timeout":   "The instance's sshd does not answer. Check that sshd runs on the instance and is not overloaded.",
	"ssh_closed":    "The instance's sshd hung up, or the tunnel to it did: open the terminal again. If it goes on, check sshd's own log on the instance.",
	"ssh_sessions":  "The instance's sshd opens no session. Check MaxSessions in its configuration.",
}

// spoken is an error with its sentence.
type spoken struct {
	error
	sentence string
}

func (s *spoken) Unwrap() error    { return s.error }
func (s *spoken) Sentence() string { return s.sentence + seeDocs }

// spoke gives an error its step's sentence, if the step has one and the error none of its own.
func spoke(err error) error {
	var has *spoken
	if errors.As(err, &has) {
		return err
	}
	var failed *Error
	if errors.As(err, &failed) && sentences[failed.Step] != "" {
		return &spoken{err, sentences[failed.Step]}
	}
	return err
}
