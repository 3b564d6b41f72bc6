//! A program that is nothing but a stage: what tests execute in place of the agent, whose binary they are not.

fn main() {
    container::stage_main_if_asked();
    eprintln!("this program is started by container::Stage::prepare_from; it does nothing by itself");
    std::process::exit(2);
}
