/* SPDX-License-Identifier: Apache-2.0 */
/* Site patcher: how long instructions are. */
#include "patch_priv.h"

/*
 * Most instructions in compiled code have a length that a table gives; Zydis decodes the rest. The table is exact
 * for valid instructions; of invalid ones it accepts some that Zydis refuses.
 */
enum { L_Z = 0, L_1 = 0x10, L_M = 0x20, L_I8 = 0x01, L_IZ = 0x02, L_I4 = 0x04, L_F6 = 0x08, L_IV = 0x40 };

static const uint8_t len_map1[256] = {
#define ALU L_M, L_M, L_M, L_M, L_1 | L_I8, L_1 | L_IZ, L_Z, L_Z
	ALU,
	ALU,
	ALU,
	ALU,
	ALU,
	ALU,
	ALU,
	ALU,
#undef ALU
	[0x50 ... 0x5f] = L_1,
	[0x63] = L_M,
	[0x68] = L_1 | L_IZ,
	L_M | L_IZ,
	L_1 | L_I8,
	L_M | L_I8,
	[0x70 ... 0x7f] = L_1 | L_I8,
	[0x80] = L_M | L_I8,
	L_M | L_IZ,
	[0x83] = L_M | L_I8,
	[0x84 ... 0x8b] = L_M,
	[0x8d] = L_M,
	[0x90 ... 0x99] = L_1,
	[0xa4 ... 0xa7] = L_1,
	[0xa8] = L_1 | L_I8,
	L_1 | L_IZ,
	[0xaa ... 0xaf] = L_1,
	[0xb0 ... 0xb7] = L_1 | L_I8,
	[0xb8 ... 0xbf] = L_1 | L_IV,
	[0xc0] = L_M | L_I8,
	L_M | L_I8,
	[0xc3] = L_1,
	[0xc9] = L_1,
	[0xcc] = L_1,
	[0xd0 ... 0xd3] = L_M,
	[0xe8] = L_1 | L_I4,
	L_1 | L_I4,
	[0xeb] = L_1 | L_I8,
	[0xf6] = L_M | L_F6 | L_I8,
	L_M | L_F6 | L_IZ,
};

static const uint8_t len_map2[256] = {
	[0x05] = L_1,
	[0x0b] = L_1,
	[0x10 ... 0x17] = L_M,
	[0x1f] = L_M,
	[0x28 ... 0x2f] = L_M,
	[0x40 ... 0x4f] = L_M,
	[0x54 ... 0x6f] = L_M,
	[0x70] = L_M | L_I8,
	[0x74 ... 0x76] = L_M,
	[0x7e ... 0x7f] = L_M,
	[0x80 ... 0x8f] = L_1 | L_I4,
	[0x90 ... 0x9f] = L_M,
	[0xa2] = L_1,
	L_M,
	L_M | L_I8,
	L_M,
	[0xab] = L_M,
	L_M | L_I8,
	L_M,
	[0xaf] = L_M,
	[0xb0] = L_M,
	L_M,
	[0xb3] = L_M,
	[0xb6] = L_M,
	L_M,
	[0xba] = L_M | L_I8,
	L_M,
	L_M,
	L_M,
	L_M,
	L_M,
	L_M,
	L_M,
	[0xc6] = L_M | L_I8,
	[0xc8 ... 0xcf] = L_1,
	[0xd4] = L_M,
	[0xd6 ... 0xd7] = L_M,
	[0xef] = L_M,
};

/* Returns 0 when the table does not know. Reads at most n bytes. */
static unsigned len_by_table(const uint8_t *p, unsigned n)
{
	unsigned i = 0, f;
	bool opsize = false, rexw = false, prefix = false;

	while (i < n && (p[i] == 0x66 || p[i] == 0x2e || p[i] == 0x64 || p[i] == 0xf2 || p[i] == 0xf3)) {
		opsize |= p[i] == 0x66;
		prefix = true;
		i++;
	}
	if (i < n && (p[i] & 0xf0) == 0x40)
		rexw = p[i++] & 8;
	if (i >= n)
		return 0;
	if (p[i] == 0x0f) {
		if (++i >= n)
			return 0;
		f = len_map2[p[i]];
	} else {
		f = len_map1[p[i]];
		if (p[i] == 0xc6 || p[i] == 0xc7) /* only /0 is MOV */
			f = i + 1 < n && !(p[i + 1] & 0x38) ? L_M | (p[i] == 0xc7 ? L_IZ : L_I8) : L_Z;
		else if (p[i] == 0xff || p[i] == 0xfe)
			f = i + 1 < n && (p[i + 1] & 0x38) <= (p[i] == 0xff ? 0x30 : 8) ? L_M : L_Z;
		if (p[i] == 0xff && (i + 1 >= n || (p[i + 1] & 0x38) == 0x18 || (p[i + 1] & 0x38) == 0x28))
			return 0; /* far call, far jmp */
	}
	if (!f || ((f & L_I4) && prefix))
		return 0;
	i++;
	if (f & L_M) {
		unsigned mod, rm, m;

		if (i >= n)
			return 0;
		m = p[i++];
		mod = m >> 6;
		rm = m & 7;
		if ((f & L_F6) && (m & 0x30))
			f = L_M;
		if (mod != 3) {
			if (rm == 4) {
				if (i >= n)
					return 0;
				if (!mod && (p[i] & 7) == 5)
					i += 4;
				i++;
			}
			i += mod == 1 ? 1 : mod == 2 || rm == 5 ? 4 : 0;
		}
	}
	if (f & L_I8)
		i += 1;
	else if (f & L_I4)
		i += 4;
	else if (f & L_IV)
		i += rexw ? 8 : opsize ? 2 : 4;
	else if (f & L_IZ)
		i += opsize && !rexw ? 2 : 4;
	return i <= n && i <= 15 ? i : 0;
}

static unsigned len_by_zydis(const ZydisDecoder *dec, const uint8_t *p, size_t n)
{
	ZydisDecodedInstruction in;

	if (!ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(dec, NULL, p, n > 15 ? 15 : n, &in)))
		return 0;
	return in.length;
}

unsigned patch_length(const ZydisDecoder *dec, const uint8_t *p, size_t n)
{
	unsigned l = len_by_table(p, n > 15 ? 15 : n);

	return l ? l : len_by_zydis(dec, p, n);
}

/* Where tools/solink.c has put Zydis: its addresses, which most processes never need. */
void solink_begin(void) __attribute__((weak));

void patch_decoder_init(ZydisDecoder *dec)
{
	if (solink_begin)
		solink_begin();
	ZydisDecoderInit(dec, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
}

unsigned patch_insn_len(const uint8_t *p, size_t n, int fast)
{
	ZydisDecoder dec;

	patch_decoder_init(&dec);
	return fast ? patch_length(&dec, p, n) : len_by_zydis(&dec, p, n);
}
