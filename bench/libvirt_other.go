//go:build !linux

package main

import (
	"context"
	"errors"
)

// There is no libvirt host of our own without Linux.
func apart(context.Context) (inside bool, code int, err error) {
	return false, 1, errors.New("the part libvirt takes Linux")
}

func measureLibvirt(context.Context, bool, map[string]float64) error {
	return errors.New("the part libvirt takes Linux")
}
