// Package libvirt holds the end-to-end tests of real guests on a real libvirt: the production worker loads them, the Linux
// module configures them, and what both claim is held against libvirt's own tools and an independent login. They are built
// with the tag e2e; `make e2e` installs what they need and runs them as root.
package libvirt
