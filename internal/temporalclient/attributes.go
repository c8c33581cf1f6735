package temporalclient

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
)

// A new search attribute is known to every part of the server within its namespace cache's refresh (10 s by default,
// twice for the chain of two caches).
const (
	visibleLimit = 25 * time.Second
	visiblePause = 100 * time.Millisecond
)

// SearchAttributeError says that a search attribute is not there, or is there with another type. A workflow that set it
// would hang: the server fails its tasks for ever.
type SearchAttributeError struct {
	Namespace string
	Name      string
	Want      enumspb.IndexedValueType
	Got       enumspb.IndexedValueType // unspecified: it is not there
	Cause     error                    // why it could not be registered; may be nil
}

func (e *SearchAttributeError) Error() string {
	create := fmt.Sprintf("`temporal operator search-attribute create --namespace %s --name %s --type %s`", e.Namespace, e.Name, e.Want)
	if e.Got != enumspb.INDEXED_VALUE_TYPE_UNSPECIFIED {
		return fmt.Sprintf("search attribute %s of Temporal's namespace %s has type %s and must have %s: remove it with `temporal operator search-attribute remove --namespace %s --name %s`, then start again",
			e.Name, e.Namespace, e.Got, e.Want, e.Namespace, e.Name)
	}
	why := ""
	if e.Cause != nil {
		why = " (" + e.Cause.Error() + ")"
	}
	return fmt.Sprintf("search attribute %s of Temporal's namespace %s is not registered%s: register it with %s", e.Name, e.Namespace, why, create)
}

func (e *SearchAttributeError) Unwrap() error { return e.Cause }

// EnsureSearchAttributes registers the search attributes that are missing in a namespace, and returns once all of them can
// be used. It may be called again, and by several workers at once. Its error joins a *SearchAttributeError for each
// attribute that has another type or cannot be had.
func EnsureSearchAttributes(ctx context.Context, c client.Client, namespace string, keys []temporal.SearchAttributeKey) error {
	there, err := listAttributes(ctx, c, namespace)
	if err != nil {
		return err
	}
	missing, wrong := compare(namespace, keys, there)
	if err := errors.Join(wrong...); err != nil {
		return err
	}
	var registering error
	if len(missing) > 0 {
		_, registering = c.OperatorService().AddSearchAttributes(ctx, &operatorservice.AddSearchAttributesRequest{Namespace: namespace, SearchAttributes: missing})
	}
	var exists *serviceerror.AlreadyExists
	if errors.As(registering, &exists) {
		registering = nil // another worker was faster
	}
	return visible(ctx, c, namespace, keys, registering)
}

// visible waits until the attributes are listed with their types and a query may use them.
func visible(ctx context.Context, c client.Client, namespace string, keys []temporal.SearchAttributeKey, registering error) error {
	within, cancel := context.WithTimeout(ctx, visibleLimit)
	defer cancel()
	ticker := time.NewTicker(visiblePause)
	defer ticker.Stop()
	for {
		there, err := listAttributes(within, c, namespace)
		if err == nil {
			missing, wrong := compare(namespace, keys, there)
			if err = errors.Join(wrong...); err != nil {
				return err
			}
			if err = absent(namespace, keys, missing, registering); err != nil && registering != nil {
				return err // nobody is going to make them appear
			}
			if err == nil {
				err = queryable(within, c, namespace, keys)
			}
		}
		if err == nil {
			return nil
		}
		select {
		case <-ticker.C:
		case <-within.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("the search attributes of namespace %s cannot be used %s after they were registered: %w", namespace, visibleLimit, err)
		}
	}
}

func listAttributes(ctx context.Context, c client.Client, namespace string) (map[string]enumspb.IndexedValueType, error) {
	listed, err := c.OperatorService().ListSearchAttributes(ctx, &operatorservice.ListSearchAttributesRequest{Namespace: namespace})
	if err != nil {
		return nil, fmt.Errorf("list the search attributes of Temporal's namespace %s: %w", namespace, err)
	}
	return listed.GetCustomAttributes(), nil
}

// compare returns the keys that are not there, and an error for each that has another type.
func compare(namespace string, keys []temporal.SearchAttributeKey, there map[string]enumspb.IndexedValueType) (map[string]enumspb.IndexedValueType, []error) {
	missing := map[string]enumspb.IndexedValueType{}
	var wrong []error
	for _, key := range keys {
		got, ok := there[key.GetName()]
		switch {
		case !ok:
			missing[key.GetName()] = key.GetValueType()
		case got != key.GetValueType():
			wrong = append(wrong, &SearchAttributeError{Namespace: namespace, Name: key.GetName(), Want: key.GetValueType(), Got: got})
		}
	}
	return missing, wrong
}

func absent(namespace string, keys []temporal.SearchAttributeKey, missing map[string]enumspb.IndexedValueType, cause error) error {
	var faults []error
	for _, key := range keys {
		if want, ok := missing[key.GetName()]; ok {
			faults = append(faults, &SearchAttributeError{Namespace: namespace, Name: key.GetName(), Want: want, Cause: cause})
		}
	}
	return errors.Join(faults...)
}

// queryable asks a question that names every attribute: the list above is read from the store, while workflows and queries
// go through caches that learn of a new attribute later.
func queryable(ctx context.Context, c client.Client, namespace string, keys []temporal.SearchAttributeKey) error {
	if len(keys) == 0 {
		return nil
	}
	terms := make([]string, len(keys))
	for i, key := range keys {
		terms[i] = key.GetName() + " IS NULL"
	}
	_, err := c.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{Namespace: namespace, PageSize: 1, Query: strings.Join(terms, " AND ")})
	return err
}
