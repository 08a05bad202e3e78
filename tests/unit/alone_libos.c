/* SPDX-License-Identifier: Apache-2.0 */
/* libos/core/batch.c beside the monitor's, which has a function of the same name. */
#define batch_flush libos_batch_flush
#include "../../libos/core/batch.c"
