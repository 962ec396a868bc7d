package kiln

import "time"

// Process is what the keeper starts and watches for an engine: an instance
// under an OCI runtime, known by the instance's ID.
type Process struct {
	ID string `json:"id"`
	// Command starts the instance and ends once it runs ("runc run --detach
	// ..."), having written the instance's process id to PIDFile.
	Command []string `json:"command"`
	Dir     string   `json:"dir"`
	PIDFile string   `json:"pid_file"`
	// LogDir gets the instance's output; LogBytes bounds all files in it.
	LogDir   string `json:"log_dir"`
	LogBytes int64  `json:"log_bytes"`
}

// ProcessStatus is a process that the keeper knows.
type ProcessStatus struct {
	ID        string    `json:"id"`
	PID       int       `json:"pid"`
	StartedAt time.Time `json:"started_at"`
	Exit      *Exit     `json:"exit,omitempty"` // once it ended
}

// Exit is how a process ended.
type Exit struct {
	At     time.Time `json:"at"`
	Code   int       `json:"code"`             // 0 to 255; 128 plus the signal when Signal is set
	Signal int       `json:"signal,omitempty"` // 0 when it exited by itself
	// Lost is true when the keeper was not its parent and saw only the end.
	Lost bool `json:"lost,omitempty"`
}
