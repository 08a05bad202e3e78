/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A private network for a family: a network namespace, a way out by slirp4netns, and published ports by a forwarder of
 * KylinX's own. Both hang on one process, the helper, which is forked before the jail from the root of the family, apart
 * from it (apart.h). It opens the published ports in the host's network, starts slirp4netns, enters the family's
 * namespaces, gives up all rights, and forwards (forward.c).
 *
 * It ends with the family: all members hold a shared flock(2) of the registry's file, and a thread of the helper waits
 * for the exclusive one. slirp4netns ends with the helper: by PR_SET_PDEATHSIG, and by a pipe that hangs up.
 *
 * Clients come from NET_ADDR4 or NET_ADDR6, which the family has on lo: not from 127.0.0.1, since programs trust that.
 */
#ifndef KX_NET_H
#define KX_NET_H
#include <stdbool.h>
#include <stdint.h>
#include "pvm.h"

#define NET_ADDR4 "10.75.120.2"
#define NET_ADDR6 "fd4b:7978::2"
#define NET_RESOLVER "nameserver 10.0.2.3\n"

/* Open the ports and start the helper, where cfg wants a private network. After registry_add(), before the jail. */
int net_start(const struct kx_config *cfg, struct kx_err *err);
/* In the family's new network namespace, lo being up: give it addresses, and wait until the helper is in it. */
int net_attach(const struct kx_config *cfg, struct kx_err *err);

/* A published port, open in the host's network. */
struct net_port {
	int fd, family;
	uint16_t inner;
	bool udp;
};

/*
 * Forward until the process ends. slirp: a pidfd whose end is told in the log. Called in the family's network
 * namespace, by a process that has nothing else to do.
 */
_Noreturn void forward_run(const struct net_port *ports, int nr, int slirp);
#endif
