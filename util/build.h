/* SPDX-License-Identifier: Apache-2.0 */
/* Which build this is: its version, and what tells two builds of one version apart. */
#ifndef KX_BUILD_H
#define KX_BUILD_H

#ifndef KX_VERSION
#define KX_VERSION "0.1.0"
#endif
#define BUILD_NAME 48 /* bytes, with the NUL */

/* As "0.1.0-1a2b3c4d5e6f7081", of letters, digits and . + - alone; static. */
const char *build_name(void);
#endif
