package main

import (
	"strings"
	"testing"
)

func TestRemoteJudge(t *testing.T) {
	r := remoteRun{report: &report{}}
	for column, ms := range map[string][]float64{bareSSH: {70, 80, 90}, native: {90, 100, 500}, awsCLI: {500}, awsSSH: {1000, 700, 799}} {
		for _, v := range ms {
			r.report.add("first", column, v)
		}
	}
	r.report.add("second", native, 14)
	r.report.add("container", native, 74)
	r.report.add("container", engine, 50)
	r.report.add("runs aws", awsCLI, 1)
	r.report.add("memory", awsCLI, 66)
	r.report.add("memory", native, 3)
	got := map[string]string{}
	for _, v := range r.judge() {
		got[v.Target] = v.String()
	}
	for target, want := range map[string]string{
		"first prompt, to ssh alone: at most 1.3":                              "met           first prompt, to ssh alone: at most 1.3: 1.25",
		"first prompt by the AWS CLI's push and tunnel, to native: at least 8": "NOT MET       first prompt by the AWS CLI's push and tunnel, to native: at least 8: 7.99",
		"container beyond host and docker exec, ms: at most 0":                 "NOT MET       container beyond host and docker exec, ms: at most 0: 10",
		"memory by aws-cli, to native: at least 15":                            "met           memory by aws-cli, to native: at least 15: 22",
		"tunnel processes that stay, native: 0":                                "met           tunnel processes that stay, native: 0: 0",
		"echo p99 beyond ssh alone, ms: at most 2":                             "not measured  echo p99 beyond ssh alone, ms: at most 2",
	} {
		if got[target] != want {
			t.Errorf("%q, want %q", got[target], want)
		}
	}
	if table := r.table(); !strings.Contains(table, "| 80 / 90") || !strings.Contains(table, "| 100 / 500") {
		t.Errorf("the table:\n%s", table)
	}
}

func TestCLIVersion(t *testing.T) {
	for version, want := range map[string]bool{
		"aws-cli/2.23.6 Python/3.13.5 Linux/6.18": true, "aws-cli/2.12.0 Python": true, "aws-cli/2.9.19 Python": false, "aws-cli/1.45.11 Python": false, "": false,
	} {
		if got := cliVersion.MatchString(version); got != want {
			t.Errorf("%q: %v", version, got)
		}
	}
}
