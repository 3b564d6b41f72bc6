//! What a vCPU says of itself.
//!
//! The host's supported features are passed on, with the machine's own topology (one package, one thread a core) and without what a
//! guest must not have or cannot use: nested virtualisation, performance counters, SGX.
//! On software KVM user code of the guest sees the processor's own CPUID whatever is set here, so this is a description
//! and not a fence. Sources: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E; Linux Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::kvm_cpuid_entry2;

const LEAF_1_ECX_VMX: u32 = 1 << 5;
const LEAF_1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF_1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF_1_EDX_HTT: u32 = 1 << 28;
const LEAF_7_EBX_SGX: u32 = 1 << 2;
const EXT_1_ECX_SVM: u32 = 1 << 2;
const EXT_1_ECX_PERFCTR: u32 = 0b11 << 23;
/// Leaf 0xb: kinds of topology level.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The place of one vCPU among all.
#[derive(Debug, Clone, Copy)]
pub struct Topology {
    /// Index and APIC id of this vCPU.
    pub vcpu: u8,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Whether KVM emulates the TSC deadline timer (it does not say so in its list).
    pub tsc_deadline: bool,
}

impl Topology {
    /// Bits of an APIC id that number the cores of a package.
    fn core_bits(self) -> u32 {
        u32::from(self.vcpus).next_power_of_two().trailing_zeros()
    }
}

/// The CPUID of one vCPU from what KVM supports.
pub fn for_vcpu(supported: &[kvm_cpuid_entry2], topology: Topology) -> Vec<kvm_cpuid_entry2> {
    let mut entries: Vec<_> = supported.iter().filter(|entry| !is_topology(entry.function)).copied().collect();
    entries.iter_mut().for_each(|entry| adjust(entry, topology));
    if supported.iter().any(|entry| entry.function == 0xb) {
        entries.extend(extended_topology(topology));
    }
    entries
}

/// Leaves that are made anew or left out: 0xb and 0x1f (Intel), 0x8000_0026 (AMD).
fn is_topology(function: u32) -> bool {
    matches!(function, 0xb | 0x1f | 0x8000_0026)
}

fn adjust(entry: &mut kvm_cpuid_entry2, topology: Topology) {
    let (id, count) = (u32::from(topology.vcpu), u32::from(topology.vcpus));
    match entry.function {
        1 => {
            entry.ebx = (entry.ebx & 0xffff) | (count << 16) | (id << 24);
            entry.ecx = (entry.ecx & !LEAF_1_ECX_VMX) | LEAF_1_ECX_HYPERVISOR;
            entry.ecx |= if topology.tsc_deadline { LEAF_1_ECX_TSC_DEADLINE } else { 0 };
            entry.edx = (entry.edx & !LEAF_1_EDX_HTT) | if count > 1 { LEAF_1_EDX_HTT } else { 0 };
        }
        4 => adjust_cache(entry, count),
        7 if entry.index == 0 => entry.ebx &= !LEAF_7_EBX_SGX,
        // Performance counters; SGX; nested SVM.
        0xa | 0x12 | 0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_0001 => entry.ecx &= !(EXT_1_ECX_SVM | EXT_1_ECX_PERFCTR),
        0x8000_0008 => entry.ecx = (entry.ecx & !0xf0ff) | (count - 1) | (topology.core_bits() << 12),
        0x8000_001e => {
            entry.eax = id;
            entry.ebx = (entry.ebx & !0xffff) | id;
            entry.ecx = 0;
        }
        _ => {}
    }
}

/// Intel's cache leaf: how many share a cache, and how many cores a package has.
fn adjust_cache(entry: &mut kvm_cpuid_entry2, count: u32) {
    let level = (entry.eax >> 5) & 7;
    if entry.eax & 0x1f == 0 {
        return;
    }
    let sharing = if level >= 3 { count - 1 } else { 0 };
    entry.eax = (entry.eax & 0x3fff) | (sharing << 14) | ((count - 1) << 26);
}

fn extended_topology(topology: Topology) -> [kvm_cpuid_entry2; 3] {
    const SIGNIFICANT_INDEX: u32 = 1;
    let level = |index: u32, kind: u32, shift: u32, processors: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: SIGNIFICANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: index | (kind << 8),
        edx: u32::from(topology.vcpu),
        padding: [0; 3],
    };
    [
        level(0, LEVEL_SMT, 0, 1),
        level(1, LEVEL_CORE, topology.core_bits(), u32::from(topology.vcpus)),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries.iter().find(|e| e.function == function && e.index == index).expect("kept")
    }

    const THIRD_OF_FOUR: Topology = Topology { vcpu: 2, vcpus: 4, tsc_deadline: true };

    #[test]
    fn nested_virtualisation_is_never_offered() {
        let supported = [entry(1, [0, 0, LEAF_1_ECX_VMX, 0]), entry(0x8000_0001, [0, 0, EXT_1_ECX_SVM, 0])];
        let entries = for_vcpu(&supported, THIRD_OF_FOUR);
        assert_eq!(find(&entries, 1, 0).ecx & LEAF_1_ECX_VMX, 0);
        assert_eq!(find(&entries, 0x8000_0001, 0).ecx & EXT_1_ECX_SVM, 0);
    }

    #[test]
    fn every_leaf_tells_the_same_apic_id_and_count() {
        let supported = [entry(1, [0, 0xaabb_ccdd, 0, 0]), entry(0xb, [9; 4]), entry(0x8000_001e, [9; 4])];
        let entries = for_vcpu(&supported, THIRD_OF_FOUR);
        assert_eq!(find(&entries, 1, 0).ebx, 0x0204_ccdd);
        assert_eq!(find(&entries, 0xb, 1).edx, 2);
        assert_eq!(find(&entries, 0xb, 1).ebx, 4);
        assert_eq!(find(&entries, 0xb, 1).eax, 2);
        assert_eq!(find(&entries, 0x8000_001e, 0).eax, 2);
        assert_eq!(entries.iter().filter(|e| e.function == 0xb).count(), 3);
    }

    #[test]
    fn a_single_vcpu_has_no_siblings() {
        let alone = Topology { vcpu: 0, vcpus: 1, tsc_deadline: false };
        let entries = for_vcpu(&[entry(1, [0, 0, 0, LEAF_1_EDX_HTT]), entry(0xb, [0; 4])], alone);
        assert_eq!(find(&entries, 1, 0).edx & LEAF_1_EDX_HTT, 0);
        assert_eq!(find(&entries, 1, 0).ecx & LEAF_1_ECX_TSC_DEADLINE, 0);
        assert_eq!(find(&entries, 0xb, 1).eax, 0);
    }
}
