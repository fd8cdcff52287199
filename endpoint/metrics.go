package endpoint

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts requests. One is shared by all APIs of a process.
type Metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

// NewMetrics registers the metrics of requests.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chancery_http_requests_total",
			Help: "Requests answered, by operation, method and class of status.",
		}, []string{"operation", "method", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "chancery_http_request_seconds",
			Help:    "Time from the first byte of a request to the last of its answer.",
			Buckets: []float64{.001, .005, .02, .1, .5, 2, 10, 40},
		}, []string{"operation"}),
	}
	reg.MustRegister(m.requests, m.seconds)
	return m
}

func (m *Metrics) observe(operation, method string, status int, took time.Duration) {
	if m == nil {
		return
	}
	m.requests.WithLabelValues(operation, knownMethod(method), strconv.Itoa(status/100)+"xx").Inc()
	m.seconds.WithLabelValues(operation).Observe(took.Seconds())
}

// knownMethod keeps the label's set closed: a method is a word of the client's choice.
func knownMethod(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodOptions:
		return m
	}
	return "other"
}
