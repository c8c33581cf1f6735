package logging

import (
	"cmp"
	"context"
	"errors"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"berth/activities"
	"berth/reservation"
)

// Interceptor returns a worker's interceptor that gives every line which a reservation's workflow or activity logs the
// reservation, computer and image, and for an activity the attempt and phase. It also logs each phase's beginning and
// end.
func Interceptor() interceptor.WorkerInterceptor { return &workerInterceptor{} }

type workerInterceptor struct {
	interceptor.WorkerInterceptorBase
}

func (*workerInterceptor) InterceptActivity(_ context.Context, next interceptor.ActivityInboundInterceptor) interceptor.ActivityInboundInterceptor {
	i := &activityInbound{}
	i.Next = next
	return i
}

func (*workerInterceptor) InterceptWorkflow(_ workflow.Context, next interceptor.WorkflowInboundInterceptor) interceptor.WorkflowInboundInterceptor {
	i := &workflowInbound{fields: &fields{}}
	i.Next = next
	return i
}

// fields are the keys and values of one workflow's or activity's lines. They are set before it runs.
type fields struct{ keyvals []any }

func (f *fields) on(logger log.Logger) log.Logger {
	if len(f.keyvals) == 0 {
		return logger
	}
	return log.With(logger, f.keyvals...)
}

func ofReservation(r reservation.Reservation) []any {
	return []any{FieldReservation, r.Name, FieldComputer, r.Computer.Name, FieldImage, r.Image.String()}
}

type activityInbound struct {
	interceptor.ActivityInboundInterceptorBase
	fields fields
}

func (i *activityInbound) Init(outbound interceptor.ActivityOutboundInterceptor) error {
	o := &activityOutbound{fields: &i.fields}
	o.Next = outbound
	return i.Next.Init(o)
}

func (i *activityInbound) ExecuteActivity(ctx context.Context, in *interceptor.ExecuteActivityInput) (any, error) {
	request, ok := phaseRequest(in.Args)
	if !ok {
		return i.Next.ExecuteActivity(ctx, in)
	}
	name := activity.GetInfo(ctx).ActivityType.Name
	phase := cmp.Or(activities.PhaseOf(name), reservation.Phase(name))
	i.fields.keyvals = append(ofReservation(request.Reservation), FieldAttempt, request.Attempt.Number, FieldPhase, string(phase))
	logger := activity.GetLogger(ctx)
	logger.Info("phase begins", "limit", request.Limit)
	began := time.Now()
	result, err := i.Next.ExecuteActivity(ctx, in)
	took := time.Since(began).Round(time.Millisecond)
	if err != nil {
		logger.Info("phase ended", "took", took, "verdict", verdict(err), "reason", err.Error())
	} else {
		logger.Info("phase ended", "took", took, "verdict", string(reservation.VerdictDone))
	}
	return result, err
}

func phaseRequest(args []any) (activities.PhaseRequest, bool) {
	if len(args) != 1 {
		return activities.PhaseRequest{}, false
	}
	request, ok := args[0].(activities.PhaseRequest)
	return request, ok
}

// verdict names what a phase's error means for the workflow.
func verdict(err error) string {
	var application *temporal.ApplicationError
	if errors.As(err, &application) {
		switch application.Type() {
		case activities.TypeReload:
			return string(reservation.VerdictReload)
		case activities.TypeFail:
			return string(reservation.VerdictFail)
		}
		return "fault"
	}
	if errors.Is(err, context.Canceled) || temporal.IsCanceledError(err) {
		return "cancelled"
	}
	return "fault"
}

type activityOutbound struct {
	interceptor.ActivityOutboundInterceptorBase
	fields *fields
}

func (o *activityOutbound) GetLogger(ctx context.Context) log.Logger {
	return o.fields.on(o.Next.GetLogger(ctx))
}

type workflowInbound struct {
	interceptor.WorkflowInboundInterceptorBase
	fields *fields
}

func (i *workflowInbound) Init(outbound interceptor.WorkflowOutboundInterceptor) error {
	o := &workflowOutbound{fields: i.fields}
	o.Next = outbound
	return i.Next.Init(o)
}

func (i *workflowInbound) ExecuteWorkflow(ctx workflow.Context, in *interceptor.ExecuteWorkflowInput) (any, error) {
	if len(in.Args) == 1 {
		if r, ok := in.Args[0].(reservation.Reservation); ok {
			i.fields.keyvals = ofReservation(r)
		}
	}
	return i.Next.ExecuteWorkflow(ctx, in)
}

type workflowOutbound struct {
	interceptor.WorkflowOutboundInterceptorBase
	fields *fields
}

func (o *workflowOutbound) GetLogger(ctx workflow.Context) log.Logger {
	return o.fields.on(o.Next.GetLogger(ctx))
}
