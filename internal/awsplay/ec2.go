package awsplay

import (
	"encoding/xml"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

const (
	ec2Version   = "2016-11-15"
	ec2Namespace = "http://ec2.amazonaws.com/doc/" + ec2Version + "/"
)

type ec2Error struct {
	XMLName   xml.Name `xml:"Response"`
	Code      string   `xml:"Errors>Error>Code"`
	Message   string   `xml:"Errors>Error>Message"`
	RequestID string   `xml:"RequestID"`
}

type instancesAnswer struct {
	XMLName   xml.Name          `xml:"DescribeInstancesResponse"`
	Namespace string            `xml:"xmlns,attr"`
	RequestID string            `xml:"requestId"`
	Items     []reservationItem `xml:"reservationSet>item"`
}

type reservationItem struct {
	ID        string         `xml:"reservationId"`
	Owner     string         `xml:"ownerId"`
	Instances []instanceItem `xml:"instancesSet>item"`
}

type instanceItem struct {
	ID        string `xml:"instanceId"`
	StateCode int    `xml:"instanceState>code"`
	State     string `xml:"instanceState>name"`
	Zone      string `xml:"placement>availabilityZone"`
	PrivateIP string `xml:"privateIpAddress,omitempty"`
	IPv6      string `xml:"ipv6Address,omitempty"`
	VPC       string `xml:"vpcId,omitempty"`
	Subnet    string `xml:"subnetId,omitempty"`
}

type endpointsAnswer struct {
	XMLName   xml.Name       `xml:"DescribeInstanceConnectEndpointsResponse"`
	Namespace string         `xml:"xmlns,attr"`
	RequestID string         `xml:"requestId"`
	Items     []endpointItem `xml:"instanceConnectEndpointSet>item"`
}

type endpointItem struct {
	Owner       string `xml:"ownerId"`
	ID          string `xml:"instanceConnectEndpointId"`
	ARN         string `xml:"instanceConnectEndpointArn"`
	State       string `xml:"state"`
	DNSName     string `xml:"dnsName"`
	FIPSDNSName string `xml:"fipsDnsName,omitempty"`
	AddressType string `xml:"ipAddressType,omitempty"`
	// Names are left out by an endpoint without a dual-stack name.
	Names  *publicNames `xml:"publicDnsNames"`
	VPC    string       `xml:"vpcId"`
	Subnet string       `xml:"subnetId"`
}

type publicNames struct {
	IPv4      names `xml:"ipv4"`
	DualStack names `xml:"dualstack"`
}

type names struct {
	DNSName     string `xml:"dnsName"`
	FIPSDNSName string `xml:"fipsDnsName,omitempty"`
}

func tellEC2(w http.ResponseWriter, d denial) {
	writeXML(w, d.status, ec2Error{Code: d.code, Message: d.message, RequestID: w.Header().Get(requestIDHeader)})
}

func writeXML(w http.ResponseWriter, status int, answer any) {
	w.Header().Set("Content-Type", "text/xml;charset=UTF-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(xml.Header))
	_ = xml.NewEncoder(w).Encode(answer) // the client may have left
}

func (s *Server) serveEC2(w http.ResponseWriter, r *http.Request, body []byte) {
	form, err := url.ParseQuery(string(body))
	if form.Get("Version") == stsVersion {
		s.serveSTS(w, r, form, body)
		return
	}
	op := Op(form.Get("Action"))
	if err != nil || form.Get("Version") != ec2Version || op != DescribeInstances && op != DescribeEndpoints {
		tellEC2(w, denial{http.StatusBadRequest, "InvalidAction", "The action or version is not valid here."})
		return
	}
	if s.playFault(w, r, op, tellEC2) {
		return
	}
	who := s.caller(r)
	if err := s.verifier("ec2", who).header(r, body); err != nil {
		tellEC2(w, ec2Denial(err))
		return
	}
	s.record(w, op, who)
	if op == DescribeInstances {
		s.describeInstances(w, form, who.account)
	} else {
		s.describeEndpoints(w, form, who.account)
	}
}

// ec2Denial returns EC2's error for a refused signature. EC2 reports an old request and an expired token alike.
func ec2Denial(err error) denial {
	switch {
	case errors.Is(err, errSkew), errors.Is(err, errExpired), errors.Is(err, errRenew):
		return denial{http.StatusBadRequest, "RequestExpired", "Request has expired."}
	case errors.Is(err, errAccessKey), errors.Is(err, errToken):
		return denial{http.StatusUnauthorized, "AuthFailure", "AWS was not able to validate the provided access credentials"}
	case errors.Is(err, errMismatch):
		return denial{http.StatusForbidden, "SignatureDoesNotMatch", err.Error()}
	}
	return denial{http.StatusForbidden, "IncompleteSignature", err.Error()}
}

// list reads "Name.1", "Name.2", …
func list(form url.Values, name string) []string {
	var all []string
	for i := 1; form.Has(name + "." + strconv.Itoa(i)); i++ {
		all = append(all, form.Get(name+"."+strconv.Itoa(i)))
	}
	return all
}

// filters reads "Filter.1.Name", "Filter.1.Value.1", …
func filters(form url.Values) map[string][]string {
	all := map[string][]string{}
	for i := 1; form.Has("Filter." + strconv.Itoa(i) + ".Name"); i++ {
		prefix := "Filter." + strconv.Itoa(i) + "."
		all[form.Get(prefix+"Name")] = list(form, prefix+"Value")
	}
	return all
}

func (s *Server) describeInstances(w http.ResponseWriter, form url.Values, account string) {
	codes := map[string]int{"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}
	answer := instancesAnswer{Namespace: ec2Namespace, RequestID: w.Header().Get(requestIDHeader)}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range list(form, "InstanceId") {
		i, ok := s.instances[id]
		if !ok || i.Account != account {
			tellEC2(w, denial{http.StatusBadRequest, "InvalidInstanceID.NotFound", "The instance ID '" + id + "' does not exist"})
			return
		}
		answer.Items = append(answer.Items, reservationItem{
			ID: "r-" + strings.TrimPrefix(id, "i-"), Owner: account,
			Instances: []instanceItem{{
				ID: i.ID, StateCode: codes[i.State], State: i.State, Zone: s.cfg.Region + "a",
				PrivateIP: i.PrivateIP, IPv6: i.IPv6, VPC: i.VPC, Subnet: i.Subnet,
			}},
		})
	}
	writeXML(w, http.StatusOK, answer)
}

func (s *Server) describeEndpoints(w http.ResponseWriter, form url.Values, account string) {
	answer := endpointsAnswer{Namespace: ec2Namespace, RequestID: w.Header().Get(requestIDHeader)}
	ids, want := list(form, "InstanceConnectEndpointId"), filters(form)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if e, ok := s.endpoints[id]; !ok || e.Account != account {
			tellEC2(w, denial{
				http.StatusBadRequest, "InvalidInstanceConnectEndpointId.NotFound",
				"The instance connect endpoint ID '" + id + "' does not exist",
			})
			return
		}
	}
	matches := func(filter, value string) bool {
		values, ok := want[filter]
		return !ok || slices.Contains(values, value)
	}
	for _, id := range s.endpointIDs {
		e := s.endpoints[id]
		if e.Account != account || len(ids) > 0 && !slices.Contains(ids, id) || !matches("vpc-id", e.VPC) || !matches("state", e.State) {
			continue
		}
		answer.Items = append(answer.Items, endpointItem{
			Owner: account, ID: e.ID, State: e.State, DNSName: e.DNSName, FIPSDNSName: e.fipsName(), VPC: e.VPC, Subnet: e.Subnet,
			AddressType: e.AddressType, Names: e.publicNames(),
			ARN: "arn:aws:ec2:" + s.cfg.Region + ":" + account + ":instance-connect-endpoint/" + e.ID,
		})
	}
	writeXML(w, http.StatusOK, answer)
}

// fipsName returns the endpoint's FIPS name, or "".
func (e Endpoint) fipsName() string { return e.fipsOf(e.DNSName) }

func (e Endpoint) fipsOf(name string) string {
	if e.NoFIPS {
		return ""
	}
	return strings.Replace(name, ".ec2-instance-connect-endpoint.", ".fips.ec2-instance-connect-endpoint.", 1)
}

func (e Endpoint) publicNames() *publicNames {
	if e.DualStackName == "" {
		return nil
	}
	return &publicNames{names{e.DNSName, e.fipsName()}, names{e.DualStackName, e.fipsOf(e.DualStackName)}}
}

// named reports whether the endpoint answers under a name.
func (e Endpoint) named(name string) bool {
	return name != "" && slices.Contains([]string{e.DNSName, e.fipsName(), e.DualStackName, e.fipsOf(e.DualStackName)}, name)
}

// reaches reports whether tunnels lead to an address of the instance.
func (e Endpoint) reaches(i Instance, address string) bool {
	return address != "" && i.Account == e.Account && i.VPC == e.VPC && (address == i.PrivateIP && e.AddressType != "ipv6" ||
		address == i.IPv6 && (e.AddressType == "ipv6" || e.AddressType == "dualstack"))
}
