/* SPDX-License-Identifier: Apache-2.0 */
/* Names for the columns of hypercalls.def, shared by whoever expands it. */
#ifndef KX_HCALL_H
#define KX_HCALL_H

#define KX_F_BLOCK 1     /* may sleep on the host */
#define KX_F_RESTART 2   /* restarted after a handler with SA_RESTART */
#define KX_F_NORESTART 4 /* EINTR whenever a handler ran */
#define KX_F_LOCAL 8     /* normally answered in the LibOS */

enum kx_arg_kind {
	KX_A_NONE,
	KX_A_FD,
	KX_A_ATFD,
	KX_A_FDN,
	KX_A_FDNEW,
	KX_A_PATH,
	KX_A_PATHE,
	KX_A_PATHO,
	KX_A_STR,
	KX_A_IN,
	KX_A_OUT,
	KX_A_IOVI,
	KX_A_IOVO,
	KX_A_INS,
	KX_A_OUTS,
	KX_A_INOUTS,
	KX_A_INSO,
	KX_A_OUTSO,
	KX_A_INOUTSO,
	KX_A_PTR,
	KX_A_ADDR,
	KX_A_INT,
	KX_A_UINT,
	KX_A_SIZE,
	KX_A_OFF,
	KX_A_MODE,
	KX_A_SIG,
	KX_A_FLAGS,
};

/* Each expands to an initialiser of { kind, name, aux, set }. */
#define KX_NONE \
	{ \
		KX_A_NONE, "", 0, "" \
	}
#define KX_FD(n) \
	{ \
		KX_A_FD, #n, 0, "" \
	}
#define KX_ATFD(n) \
	{ \
		KX_A_ATFD, #n, 0, "" \
	}
#define KX_FDN(n) \
	{ \
		KX_A_FDN, #n, 0, "" \
	}
#define KX_FDNEW(n) \
	{ \
		KX_A_FDNEW, #n, 0, "" \
	}
#define KX_PATH(n, d) \
	{ \
		KX_A_PATH, #n, d, "" \
	}
#define KX_PATHE(n, d) \
	{ \
		KX_A_PATHE, #n, d, "" \
	}
#define KX_PATHO(n, d) \
	{ \
		KX_A_PATHO, #n, d, "" \
	}
#define KX_STR(n) \
	{ \
		KX_A_STR, #n, 0, "" \
	}
#define KX_IN(n, l) \
	{ \
		KX_A_IN, #n, l, "" \
	}
#define KX_OUT(n, l) \
	{ \
		KX_A_OUT, #n, l, "" \
	}
#define KX_IOVI(n, c) \
	{ \
		KX_A_IOVI, #n, c, "" \
	}
#define KX_IOVO(n, c) \
	{ \
		KX_A_IOVO, #n, c, "" \
	}
#define KX_INS(n, s) \
	{ \
		KX_A_INS, #n, s, "" \
	}
#define KX_OUTS(n, s) \
	{ \
		KX_A_OUTS, #n, s, "" \
	}
#define KX_INOUTS(n, s) \
	{ \
		KX_A_INOUTS, #n, s, "" \
	}
#define KX_INSO(n, s) \
	{ \
		KX_A_INSO, #n, s, "" \
	}
#define KX_OUTSO(n, s) \
	{ \
		KX_A_OUTSO, #n, s, "" \
	}
#define KX_INOUTSO(n, s) \
	{ \
		KX_A_INOUTSO, #n, s, "" \
	}
#define KX_PTR(n) \
	{ \
		KX_A_PTR, #n, 0, "" \
	}
#define KX_ADDR(n) \
	{ \
		KX_A_ADDR, #n, 0, "" \
	}
#define KX_INT(n) \
	{ \
		KX_A_INT, #n, 0, "" \
	}
#define KX_UINT(n) \
	{ \
		KX_A_UINT, #n, 0, "" \
	}
#define KX_SIZE(n) \
	{ \
		KX_A_SIZE, #n, 0, "" \
	}
#define KX_OFF(n) \
	{ \
		KX_A_OFF, #n, 0, "" \
	}
#define KX_MODE(n) \
	{ \
		KX_A_MODE, #n, 0, "" \
	}
#define KX_SIG(n) \
	{ \
		KX_A_SIG, #n, 0, "" \
	}
#define KX_FLAGS(n, set) \
	{ \
		KX_A_FLAGS, #n, 0, #set \
	}

/* Without pointers: a table of these needs no relocation. */
struct kx_arg_desc {
	unsigned char kind; /* enum kx_arg_kind */
	char name[12];
	short aux;   /* length index, size or directory index */
	char set[8]; /* FLAGS: name of the symbol set */
};
#endif
