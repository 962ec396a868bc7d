package tracing

import (
	"context"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/kilnproject/kiln"
)

// stepsOfImage bounds the spans of one image's steps: what a Dockerfile says is
// not ours.
const stepsOfImage = 256

// Bake makes spans of a bake's progress, below the one that the context is in:
// one for each image, and below it one for each of its steps. The function that
// it returns passes the progress on, end ends what is left.
func (t *Tracer) Bake(ctx context.Context, pass func(kiln.Progress)) (progress func(kiln.Progress), end func()) {
	p := t.current.Load()
	if p == nil || !trace.SpanContextFromContext(ctx).IsValid() {
		return pass, func() {}
	}
	b := &baking{ctx: ctx, tracer: p.tracer, images: map[string]*image{}}
	return func(line kiln.Progress) {
		b.line(line)
		if pass != nil {
			pass(line)
		}
	}, b.end
}

// baking are the spans of a bake.
type baking struct {
	ctx    context.Context
	tracer trace.Tracer

	mu     sync.Mutex
	ended  bool
	images map[string]*image
}

// image is the span of one, and those of its steps that are not done.
type image struct {
	ctx   context.Context
	span  trace.Span
	steps map[string]trace.Span
	count int
}

func (b *baking) line(p kiln.Progress) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended || p.Subject == "" {
		return
	}
	i := b.images[p.Subject]
	if i == nil {
		i = &image{steps: map[string]trace.Span{}}
		i.ctx, i.span = b.tracer.Start(b.ctx, "bake image", began(p), trace.WithAttributes(attribute.String("kiln.image", p.Subject)))
		b.images[p.Subject] = i
	}
	if p.Step == "" {
		if p.Done || p.Error != "" {
			finish(i.span, p)
		}
		return
	}
	i.step(b.tracer, p)
}

// began is when what a line tells of began, as far as the line says.
func began(p kiln.Progress) trace.SpanStartOption {
	return trace.WithTimestamp(time.Now().Add(-p.Took))
}

// step begins or ends the span of a step. Its name is in the definition, so it
// is an attribute.
func (i *image) step(tracer trace.Tracer, p kiln.Progress) {
	span := i.steps[p.Step]
	if span == nil {
		if i.count++; i.count > stepsOfImage {
			return
		}
		_, span = tracer.Start(i.ctx, "bake step", began(p), trace.WithAttributes(attribute.String("kiln.step", p.Step)))
		i.steps[p.Step] = span
	}
	if p.Done || p.Error != "" {
		finish(span, p)
		delete(i.steps, p.Step)
	}
}

// finish ends a span as its last line says.
func finish(span trace.Span, p kiln.Progress) {
	span.SetAttributes(attribute.Bool("kiln.cached", p.Cached))
	if p.Error != "" {
		span.SetStatus(codes.Error, clip(p.Error))
	}
	span.End()
}

// end ends the spans that no line ended; a second end of a span does nothing.
func (b *baking) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	for _, i := range b.images {
		for _, span := range i.steps {
			span.End()
		}
		i.span.End()
	}
}
