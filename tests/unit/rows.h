/* SPDX-License-Identifier: Apache-2.0 */
/* The table of hypercalls for a program that has parts of the monitor without hcall.c. */
#ifndef KX_UNIT_ROWS_H
#define KX_UNIT_ROWS_H
#include "../../monitor/core/hcall.h"

#undef KX_CALL
#define KX_CALL(nr, name, handler, flags, doc, a0, a1, a2, a3, a4, a5) { #name, nr, flags, { a0, a1, a2, a3, a4, a5 } },
const struct hc_row hc_rows[] = {
#include "../../abi/hypercalls.def"
};
const unsigned hc_nr_rows = sizeof(hc_rows) / sizeof(hc_rows[0]);

const struct hc_row *hc_row_find(uint64_t nr)
{
	for (unsigned i = 0; i < hc_nr_rows; i++)
		if (hc_rows[i].nr == nr)
			return &hc_rows[i];
	return NULL;
}
#endif
