/* SPDX-License-Identifier: Apache-2.0 */
/* SHA-256 of bytes in memory: by the CPU's instructions for it where there are some, else by libsodium. */
#ifndef KX_SHA256_H
#define KX_SHA256_H
#include <stddef.h>
#include <stdint.h>

void sha256(uint8_t out[32], const void *bytes, size_t len);
#endif
