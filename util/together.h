/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Variables that each fork writes, on both sides: locks above all. Side by side they are one page that is copied, not one
 * each.
 */
#ifndef KX_TOGETHER_H
#define KX_TOGETHER_H

#define KX_TOGETHER __attribute__((section("kx_together")))

#endif
