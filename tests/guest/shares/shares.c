/* SPDX-License-Identifier: Apache-2.0 */
/* alone.c's server and checks, by a listener that was had at a fork, as a worker's is. Passes on any Linux. */
#define SHARED
#include "../alone/alone.c"
