package vmware

import (
	"reflect"

	"github.com/vmware/govmomi/vim25/types"
)

// copyOf copies a network interface, so that the template that is remembered stays as it is. The copy shares what its
// pointers point to, and whoever changes it replaces those whole.
func copyOf(card types.BaseVirtualEthernetCard) types.BaseVirtualEthernetCard {
	original := reflect.ValueOf(card).Elem()
	copied := reflect.New(original.Type())
	copied.Elem().Set(original)
	return copied.Interface().(types.BaseVirtualEthernetCard)
}
