#include "kernel/build_id.h"

#include <fcntl.h>
#include <gelf.h>
#include <string.h>
#include "base/cleanup.h"

enum { NOTES_BYTES_MAX = 64 * 1024 }; /* those of a file that wants to waste our time are longer */

static void elf_endp(Elf **elf)
{
	elf_end(*elf);
}

static size_t find_note(Elf_Data *notes, uint8_t *ret)
{
	GElf_Nhdr n;
	size_t name, desc, next;

	for (size_t at = 0; (next = gelf_getnote(notes, at, &n, &name, &desc)) > 0; at = next) {
		const char *text = (const char *)notes->d_buf + name;

		if (n.n_type != NT_GNU_BUILD_ID || n.n_namesz != sizeof("GNU") ||
		    memcmp(text, "GNU", sizeof("GNU")))
			continue;
		size_t len = n.n_descsz < BUILD_ID_MAX ? n.n_descsz : BUILD_ID_MAX;
		memcpy(ret, (const uint8_t *)notes->d_buf + desc, len);
		return len;
	}
	return 0;
}

size_t build_id_read(const char *path, uint8_t ret[static BUILD_ID_MAX])
{
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	size_t phdrs, found = 0;

	if (fd < 0 || elf_version(EV_CURRENT) == EV_NONE)
		return 0;
	_cleanup_(elf_endp) Elf *elf = elf_begin(fd, ELF_C_READ, NULL);
	if (!elf || elf_kind(elf) != ELF_K_ELF || elf_getphdrnum(elf, &phdrs))
		return 0;
	for (size_t i = 0; i < phdrs && !found; i++) {
		GElf_Phdr ph;
		Elf_Data *notes = NULL;

		if (gelf_getphdr(elf, (int)i, &ph) && ph.p_type == PT_NOTE &&
		    ph.p_filesz <= NOTES_BYTES_MAX)
			notes = elf_getdata_rawchunk(elf, (int64_t)ph.p_offset, ph.p_filesz,
						     ph.p_align == 8 ? ELF_T_NHDR8 : ELF_T_NHDR);
		if (notes)
			found = find_note(notes, ret);
	}
	return found;
}
