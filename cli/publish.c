/* SPDX-License-Identifier: Apache-2.0 */
/* --publish [IP:]PORT:PORT[/udp]: from text to a struct kx_publish. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../monitor/core/pvm.h"
#include "cli.h"

#define SYNTAX "give [IP:]PORT:PORT, with /udp for UDP, an IPv6 address in brackets"

/* A port that is all of s. 0: none. */
static uint16_t port_parse(const char *s)
{
	size_t n = strlen(s);
	if (!n || n > 5 || strspn(s, "0123456789") != n)
		return 0;
	long v = strtol(s, NULL, 10);
	return v <= 65535 ? (uint16_t)v : 0;
}

/* The address before the ports. */
static bool addr_parse(struct kx_publish *p, char *s)
{
	size_t n = strlen(s);
	if (*s != '[')
		return inet_pton(p->family = AF_INET, s, p->addr) == 1;
	if (s[n - 1] != ']')
		return false;
	s[n - 1] = 0;
	return inet_pton(p->family = AF_INET6, s + 1, p->addr) == 1;
}

/* Two of one address and port, or of all addresses and one: the second could not be had. */
static bool clashes(const struct kx_publish *a, const struct kx_publish *b)
{
	static const uint8_t all[16];
	if (a->port != b->port || a->udp != b->udp || (a->family && b->family && a->family != b->family))
		return false;
	return !memcmp(a->addr, b->addr, 16) || !memcmp(a->addr, all, 16) || !memcmp(b->addr, all, 16);
}

int publish_add(struct kx_config *cfg, const char *s, struct kx_err *err)
{
	struct kx_publish p = { .family = AF_UNSPEC };
	char copy[128], addr[INET6_ADDRSTRLEN] = "", *inner, *outer, *proto, *text;
	if (cfg->nr_publish == (int)(sizeof cfg->publish / sizeof *cfg->publish))
		return kx_err_set(err, E2BIG, "--publish %s: too many ports (give at most %d)", s, cfg->nr_publish);
	if (strlen(s) >= sizeof copy)
		return kx_err_set(err, EINVAL, "--publish %.64s...: not a port to publish (" SYNTAX ")", s);
	strcpy(copy, s);
	if ((proto = strchr(copy, '/')))
		*proto++ = 0;
	p.udp = proto && !strcmp(proto, "udp");
	if (proto && !p.udp && strcmp(proto, "tcp"))
		return kx_err_set(err, EINVAL, "--publish %s: unknown protocol '%s' (give tcp or udp)", s, proto);
	if (!(inner = strrchr(copy, ':')))
		return kx_err_set(err, EINVAL, "--publish %s: not a port to publish (" SYNTAX ")", s);
	*inner++ = 0;
	outer = strrchr(copy, ':');
	if (outer) {
		*outer++ = 0;
		if (!*copy || !addr_parse(&p, copy))
			return kx_err_set(err, EINVAL, "--publish %s: not an address of the host (" SYNTAX ")", s);
	} else {
		outer = copy;
	}
	p.port = port_parse(outer);
	p.inner = port_parse(inner);
	if (!p.port || !p.inner)
		return kx_err_set(err, EINVAL, "--publish %s: not a port: '%s' (give 1 to 65535)", s,
				  p.port ? inner : outer);
	for (int i = 0; i < cfg->nr_publish; i++)
		if (clashes(&cfg->publish[i], &p))
			return kx_err_set(err, EADDRINUSE,
					  "--publish %s: %s has this port already (choose another port)", s,
					  cfg->publish[i].text);
	if (p.family)
		inet_ntop(p.family, p.addr, addr, sizeof addr);
	if (asprintf(&text, p.family == AF_INET6 ? "[%s]%s%u:%u/%s" : "%s%s%u:%u/%s", addr, *addr ? ":" : "", p.port,
		     p.inner, p.udp ? "udp" : "tcp") < 0)
		return kx_err_set(err, ENOMEM, "--publish %s: no memory (free some)", s);
	p.text = text;
	cfg->publish[cfg->nr_publish++] = p;
	return 0;
}
