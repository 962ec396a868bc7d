package control

import "context"

// Observer is told of pieces of work: when one begins, and how it ended. It
// neither waits nor fails.
type Observer interface {
	// Begin is called when work begins. Its name is one of a few; about has
	// names and values in turn. What is part of the work gets the context that
	// Begin returns, which ends when ctx does.
	Begin(ctx context.Context, name string, about ...string) (context.Context, End)
}

// End says how a piece of work ended, and what was not known about it before.
type End func(err error, about ...string)

// The names of work. What a command asks for has "kiln" before it.
const (
	workUp        = "kiln up"
	workBakeOnly  = "kiln bake"
	workRollback  = "kiln rollback"
	workRepave    = "kiln repave"
	workParse     = "parse"
	workBake      = "bake"
	workProve     = "prove"
	workBundle    = "bundle"
	workRelease   = "release"
	workRollout   = "rollout"
	workStep      = "rollout step" // about "step"
	workCheck     = "verify"
	workReconcile = "reconcile"
)

// begins tells the observer, where there is one.
func (c *Control) begins(ctx context.Context, name string, about ...string) (context.Context, End) {
	if c.observer == nil {
		return ctx, func(error, ...string) {}
	}
	return c.observer.Begin(ctx, name, about...)
}

// valued is a context with the values of another one, which may have ended.
type valued struct {
	context.Context
	values context.Context
}

// as gives a context the values of another one.
func as(ctx, values context.Context) context.Context {
	return valued{ctx, context.WithoutCancel(values)}
}

func (v valued) Value(key any) any {
	if value := v.values.Value(key); value != nil {
		return value
	}
	return v.Context.Value(key)
}
